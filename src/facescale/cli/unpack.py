"""`facescale unpack`: a checkpoint as plain safetensors files."""

import argparse
import sys
from pathlib import Path

from facescale.cli.parser import Parser, check_counts

USAGE = "facescale unpack CHECKPOINT [--output FOLDER] [--centres] [--dominant NPZ] [options]"


def add_options(parser: Parser) -> None:
    """What the command understands."""
    add = parser.add_argument
    add("checkpoint", metavar="CHECKPOINT", help="a checkpoint, or a run folder for its last one")
    add("--output", metavar="FOLDER", help="of the files; RUN/step-N when not given")
    add("--centres", action="store_true", help="write the class centres too")
    add(
        "--dominant",
        metavar="NPZ",
        help="of sub-centres that to which most images are nearest;"
        " NPZ is what `facescale embed` made of the training images",
    )
    add("--rows", type=int, metavar="N", help="classes in a file of centres [100000]")
    add(
        "--old",
        action="store_true",
        help="convert a checkpoint of format 2 in its place; only if you trust its source",
    )


def run(chosen: argparse.Namespace) -> None:
    """Write the files, and name each."""
    check_counts(chosen, "rows")
    if chosen.rows is not None and not chosen.centres and chosen.dominant is None:
        raise ValueError("--rows is for --centres; give both, or leave it out")
    from facescale.checkpoint import folder as checkpoint
    from facescale.checkpoint import old, unpack
    from facescale.distributed import Group
    from facescale.evaluation.embedded import read_embedded

    if chosen.old:
        sys.stderr.write(
            "warning: a checkpoint of format 2 is made of pickles, which can run code when they "
            "are opened; convert only those whose source you trust\n"
        )
        print(old.convert(checkpoint.last(Path(chosen.checkpoint))))
        return
    folder = checkpoint.find(Path(chosen.checkpoint), Group())
    run_folder = folder.parent.parent
    output = run_folder / folder.name if chosen.output is None else Path(chosen.output)
    output.mkdir(parents=True, exist_ok=True)
    print(unpack.unpack_backbone(folder, output))
    if chosen.centres or chosen.dominant is not None:
        rows = unpack.ROWS if chosen.rows is None else chosen.rows
        images = None if chosen.dominant is None else read_embedded(chosen.dominant)
        for path in unpack.unpack_centres(folder, output, rows, images):
            print(path)
