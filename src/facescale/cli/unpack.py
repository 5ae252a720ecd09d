"""`facescale unpack`: a checkpoint as plain safetensors files."""

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from facescale.checkpoint import folder as checkpoint
from facescale.checkpoint import unpack
from facescale.distributed import Group

HELP = "turn a checkpoint into model.safetensors, and its class centres into pieces"


def add_options(parser: ArgumentParser) -> None:
    """What the command understands."""
    parser.add_argument("checkpoint", help="a checkpoint, or a run folder for its last one")
    parser.add_argument("--output", type=str, help="folder of the files; RUN/step-N if not given")
    parser.add_argument("--centres", action="store_true", help="write the class centres too")
    parser.add_argument("--rows", type=int, default=unpack.ROWS, help="classes in a piece")


def run(chosen: Namespace) -> None:
    """Write the files, and name each."""
    folder = checkpoint.find(Path(chosen.checkpoint), Group())
    run_folder = folder.parent.parent
    output = run_folder / folder.name if chosen.output is None else Path(chosen.output)
    output.mkdir(parents=True, exist_ok=True)
    print(unpack.unpack_backbone(folder, output))
    if chosen.centres:
        for path in unpack.unpack_centres(folder, output, chosen.rows):
            print(path)
