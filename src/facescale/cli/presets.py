"""`facescale presets`: what can be trained by name."""

import argparse

from facescale.cli.layers import presets
from facescale.cli.parser import Parser

USAGE = "facescale presets [--json]"


def add_options(parser: Parser) -> None:
    """What the command understands."""
    parser.add_argument("--json", action="store_true", help="for programs")


def run(chosen: argparse.Namespace) -> None:
    """Name and first comment line of each preset."""
    lines = {
        name: path.read_text().splitlines()[0].lstrip("# ") for name, path in presets().items()
    }
    from facescale.cli.terminal import escape, show, show_json, table

    if chosen.json:
        show_json([{"name": name, "description": line} for name, line in lines.items()])
        return
    shown = table("preset", "", left=2)
    for name, line in lines.items():
        shown.add_row(f"[bold]{name}[/]", escape(line))
    show(shown)
