"""`facescale bench page`: the pages of a report that was measured before."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from facescale.report.page import write_report
from facescale.report.record import load

HELP = "write the report's pages from its results.json; nothing is measured"
USAGE = "facescale bench page RESULTS.json [--output DIR]"


def add_options(parser: ArgumentParser) -> None:
    """What the command understands."""
    parser.add_argument("results", help="results.json of `facescale bench report`")
    parser.add_argument("--output", type=str, help="folder of the pages; that of RESULTS if not")


def run(chosen: Namespace) -> None:
    """Write `report.html`, `report.md` and its plots, and print the paths of the pages."""
    results = Path(chosen.results)
    output = results.parent if chosen.output is None else Path(chosen.output)
    for path in write_report(load(results), output):
        print(path)
