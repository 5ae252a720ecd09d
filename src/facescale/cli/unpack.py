"""`facescale unpack`: a checkpoint as plain safetensors files."""

import argparse
from pathlib import Path

from facescale.cli.parser import Parser

USAGE = "facescale unpack CHECKPOINT [--output FOLDER] [--centres] [--rows N]"


def add_options(parser: Parser) -> None:
    """What the command understands."""
    add = parser.add_argument
    add("checkpoint", metavar="CHECKPOINT", help="a checkpoint, or a run folder for its last one")
    add("--output", metavar="FOLDER", help="of the files; RUN/step-N when not given")
    add("--centres", action="store_true", help="write the class centres too")
    add("--rows", type=int, metavar="N", help="classes in a file of centres [100000]")


def run(chosen: argparse.Namespace) -> None:
    """Write the files, and name each."""
    if chosen.rows is not None and chosen.rows < 1:
        raise ValueError(f"--rows must be at least 1, got {chosen.rows}")
    from facescale.checkpoint import folder as checkpoint
    from facescale.checkpoint import unpack
    from facescale.distributed import Group

    folder = checkpoint.find(Path(chosen.checkpoint), Group())
    run_folder = folder.parent.parent
    output = run_folder / folder.name if chosen.output is None else Path(chosen.output)
    output.mkdir(parents=True, exist_ok=True)
    print(unpack.unpack_backbone(folder, output))
    if chosen.centres:
        rows = unpack.ROWS if chosen.rows is None else chosen.rows
        for path in unpack.unpack_centres(folder, output, rows):
            print(path)
