"""`facescale data convert`: a data set to another format."""

import argparse

from facescale.cli.data_options import (
    add_labels,
    add_source,
    add_writing,
    open_source,
    report,
    writing_of,
)
from facescale.cli.parser import Parser

USAGE = "facescale data convert SOURCE OUT --to recordio|ofrecord|tar|folder [options]"
ABOUT = """
Images are copied byte by byte, and labels stay; in a folder they follow the sorted names of the
people. A command that was killed goes on where it was when it is repeated. At the end the new set
is read, and compared with the source by the number and the SHA-256 of its images."""


def add_options(parser: Parser) -> None:
    """What the command understands."""
    add_source(parser)
    add = parser.add_argument
    add(
        "--to",
        required=True,
        choices=["recordio", "ofrecord", "tar", "folder"],
        help="the new format",
    )
    add("--part-size", type=int, metavar="N", help="images of a part [200000] or a shard [10000]")
    add_writing(parser)
    add_labels(parser)


def run(chosen: argparse.Namespace) -> None:
    """Write the set, read it again, and say what was written."""
    from facescale.datasets.convert import Options

    if chosen.part_size is not None and chosen.to in ("recordio", "folder"):
        raise ValueError(
            f"--part-size is for ofrecord and tar; leave it out, {chosen.to} has no parts"
        )
    if chosen.labels != "float32" and chosen.to != "recordio":
        raise ValueError(f"--labels is for recordio; leave it out, {chosen.to} has exact labels")
    part_size = chosen.part_size
    if part_size is None:
        part_size = 200_000 if chosen.to == "ofrecord" else 10_000
    options = Options(to=chosen.to, part_size=part_size, labels=chosen.labels, **writing_of(chosen))
    report(open_source(chosen), chosen.out, options)
