"""`facescale import config`: an arcface_torch config as YAML for `facescale train`."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from facescale.cli.layers import build
from facescale.cli.parser import Parser
from facescale.cli.terminal import file_to_write
from facescale.cli.values import convert

if TYPE_CHECKING:
    from facescale.config import Config

USAGE = "facescale import config CONFIG.py [OUT.yaml] [--gpus N]"
ABOUT = """
The file is read, not run. What has no counterpart is said on stderr, line by line."""


def add_options(parser: Parser) -> None:
    """What the command understands."""
    parser.add_argument("config", metavar="CONFIG.py", help="one of arcface_torch's configs/")
    parser.add_argument("output", metavar="OUT.yaml", nargs="?", help="to write; else it is shown")
    parser.add_argument(
        "--gpus", type=int, default=8, metavar="N", help="of the run, for the warm-up [8]"
    )


def run(chosen: argparse.Namespace) -> None:
    """Write the options that differ from the defaults, and the notes."""
    import yaml

    from facescale.config import Config, arcface_torch
    from facescale.config.fields import fields, values
    from facescale.files import printable, write_whole

    source = Path(chosen.config)
    if not source.is_file():
        raise FileNotFoundError(f"{source} is not a file; give a config of arcface_torch")
    found = arcface_torch.read(source, chosen.gpus)
    hints = fields()
    options = {
        name: convert(value, hints[name], f"{source}: {name}")
        for name, value in found.options.items()
    }
    config: Config = build(options)
    text = f"# {printable(source.name)} of arcface_torch, for {chosen.gpus} GPUs.\n"
    text += yaml.safe_dump(_nested(values(config), values(Config())), sort_keys=False)
    if chosen.output is None:
        sys.stdout.write(text)
    else:
        write_whole(file_to_write(chosen.output), [text.encode()])
        print(chosen.output)
    for note in [*found.notes, *_unknown_network(config)]:
        sys.stderr.write(f"{printable(f'{source.name}: {note}')}\n")


def _unknown_network(config: "Config") -> list[str]:
    """A line where this package has no network of the config's name."""
    from facescale.backbones import NAMES

    if (name := config.backbone.name) in NAMES:
        return []
    return [f"config.network = {name!r}: there is no such network here; choose another one"]


def _nested(options: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """What differs from the defaults, as sections."""
    tree: dict[str, Any] = {}
    for name, value in options.items():
        if value == defaults[name]:
            continue
        *sections, last = name.split(".")
        below = tree
        for section in sections:
            below = below.setdefault(section, {})
        below[last] = value
    return tree
