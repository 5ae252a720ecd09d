"""`facescale compare`: several training runs on one HTML page."""

import argparse

from facescale.cli.parser import Parser
from facescale.cli.terminal import file_to_write

USAGE = "facescale compare RUN [RUN ...] [--output compare.html]"


def add_options(parser: Parser) -> None:
    """What the command understands."""
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folders of runs, finished or not")
    parser.add_argument(
        "--output", default="compare.html", metavar="FILE", help="the page [compare.html]"
    )


def run(chosen: argparse.Namespace) -> None:
    """Write the page, and print its path."""
    output = file_to_write(chosen.output, ".html", ".htm")
    from facescale.report.training_page import write_page
    from facescale.report.training_runs import read_runs

    write_page(read_runs(chosen.runs), output)
    print(output)
