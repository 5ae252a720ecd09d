"""`facescale bench page`: the pages of a report that was measured before."""

import argparse
from pathlib import Path

from facescale.cli.bench_device import write_pages
from facescale.cli.parser import Parser

USAGE = "facescale bench page RESULTS.json [--output FOLDER]"


def add_options(parser: Parser) -> None:
    """What the command understands."""
    parser.add_argument(
        "results",
        metavar="RESULTS.json",
        help="results.json of `bench report`, or device.json of `bench device`",
    )
    parser.add_argument(
        "--output", metavar="FOLDER", help="of the pages; that of RESULTS.json when not given"
    )


def run(chosen: argparse.Namespace) -> None:
    """Write the pages and their plots, and print the paths of the pages."""
    from facescale.report.device.results import is_device_file
    from facescale.report.page import write_report
    from facescale.report.record import load

    results = Path(chosen.results)
    output = results.parent if chosen.output is None else Path(chosen.output)
    if is_device_file(results):
        write_pages(results, output)
        return
    for path in write_report(load(results), output):
        print(path)
