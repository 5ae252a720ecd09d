"""`facescale bench case`: one trial, in a process of its own under torchrun."""

import argparse
from pathlib import Path

from facescale.cli.measured import measured_device
from facescale.cli.options import add_config_options, read_config
from facescale.cli.parser import Parser

USAGE = "facescale bench case PRESET --output FOLDER [options]"


def add_options(parser: Parser) -> None:
    """What the command understands."""
    parser.add_argument(
        "--output", required=True, metavar="FOLDER", help="where metrics.jsonl is written"
    )
    parser.add_argument("--memory", metavar="SIZE", help="limit of a rank or its device: 4GiB")
    add_config_options(parser)


def run(chosen: argparse.Namespace) -> None:
    """Take the steps."""
    config = read_config(chosen)
    measured_device(config.device)
    from facescale.plan.units import parse_bytes
    from facescale.report.trial import run_trial

    memory = None if chosen.memory is None else parse_bytes(chosen.memory)
    run_trial(config, Path(chosen.output), memory)
