"""`facescale data pack`: images of people to a training set in RecordIO."""

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

USAGE = "facescale data pack SOURCE OUT [options]"
ABOUT = """
The set has InsightFace's layout: OUT/train.rec, train.idx and property, and names.txt with the
names of the people. MXNet, arcface_torch and `facescale train` read it. Images must be JPEG or PNG
of 112 x 112 pixels, and are stored byte by byte; --resize allows others. A command that was killed
goes on where it was when it is repeated."""


def add_options(parser: Parser) -> None:
    """What the command understands."""
    add_source(parser)
    add_writing(parser)
    add_labels(parser)
    add = parser.add_argument
    add("--resize", choices=["stretch", "crop"], help="allow images of other sizes, and how to fit")
    add("--encoding", choices=["jpeg", "png"], default="jpeg", help="of resized images [jpeg]")
    add("--quality", type=int, default=95, metavar="N", help="of their JPEG [95]")


def run(chosen: argparse.Namespace) -> None:
    """Write the set, read it again, and say what was written."""
    from facescale.datasets.convert import Options
    from facescale.datasets.pack import Prepare

    prepare = Prepare(chosen.resize, chosen.encoding, chosen.quality)
    if chosen.resize is None and (chosen.encoding, chosen.quality) != ("jpeg", 95):
        raise ValueError("--encoding and --quality are for --resize; give it, or leave them out")
    options = Options(prepare=prepare, labels=chosen.labels, **writing_of(chosen))
    report(open_source(chosen), chosen.out, options)
