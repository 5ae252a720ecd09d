"""`facescale presets`: what can be trained by name."""

from jsonargparse import ArgumentParser, Namespace
from rich.console import Console
from rich.table import Table

from facescale.config import PRESETS

HELP = "list the presets"


def add_options(_: ArgumentParser) -> None:
    """Nothing to choose."""


def run(_: Namespace) -> None:
    """Name and first comment line of each preset."""
    table = Table.grid(padding=(0, 3))
    for path in sorted(PRESETS.glob("*.yaml")):
        first_line = path.read_text().splitlines()[0]
        table.add_row(f"[bold]{path.stem}[/]", first_line.lstrip("# "))
    Console(highlight=False).print(table)
