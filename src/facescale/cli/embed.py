"""`facescale embed`: the embeddings of a data set, a folder or a photograph, in a file."""

import argparse
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from facescale.cli.detection import (
    add_detection_options,
    check_detection_options,
    detection_options,
    open_chosen_detector,
)
from facescale.cli.models import model_place
from facescale.cli.networks import add_network_options, check_network_options, open_network
from facescale.cli.parser import Parser
from facescale.cli.progress import show_progress
from facescale.cli.terminal import file_to_write
from facescale.files import printable

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from facescale.data.dataset import Dataset
    from facescale.distributed import Group
    from facescale.evaluation.faces import Faces

USAGE = "facescale embed MODEL SOURCE OUT.npz [options]"
ABOUT = """
SOURCE is a data set, a folder with a folder of images per person, a folder of photographs of one
person each, or one photograph. Images are aligned faces of 112 x 112, or have --points, or are
aligned on the way by --align, with a detector."""
MODEL_OPTIONS = ("model", "backbone", "family", "mean", "std", "flip")


def add_options(parser: Parser) -> None:
    """What the command understands."""
    add_network_options(parser)
    parser.add_argument("source", metavar="SOURCE", help="data set, folder or photograph")
    parser.add_argument("output", metavar="OUT.npz", help="the file to write")
    add_face_options(parser)


def add_face_options(parser: Parser) -> None:
    """How images become aligned faces."""
    add = parser.add_argument
    add("--points", metavar="CSV", help="five points of each photograph, to align it by")
    add("--stretch", action="store_true", help="scale images that are not 112 x 112")
    add("--align", action="store_true", help="find the face on each photograph, and align it")
    add_detection_options(parser)


def check_face_options(chosen: argparse.Namespace) -> None:
    """Find mistakes before torch is imported.

    Raises:
        ValueError: Options of a detector without --align, or --align beside other ways to get a
            face.
    """
    check_detection_options(chosen)
    if not chosen.align and (given := detection_options(chosen)):
        raise ValueError(f"{given[0]} is for --align; give both, or leave it out")
    if chosen.align and (chosen.points is not None or chosen.stretch):
        raise ValueError("--align finds the faces itself; leave out --points and --stretch")


def run(chosen: argparse.Namespace) -> None:
    """Embed, the ranks a batch in turn; the first one writes."""
    check_network_options(chosen)
    check_face_options(chosen)
    output = file_to_write(chosen.output, ".npz")
    from facescale.distributed import processes, world_group
    from facescale.evaluation.embedded import write_embedded
    from facescale.evaluation.faces import open_faces, read_points

    with processes(chosen.device) as device:
        points = None if chosen.points is None else read_points(chosen.points)
        faces, world = open_faces(chosen.source, points, chosen.stretch), world_group()
        if chosen.align:
            faces, problems = find_and_align(faces.dataset, chosen, world)
            if world.rank == 0:
                _say_problems(faces, problems)
        batches = _stream(open_network(chosen, device), faces, chosen, device, world)
        if world.rank > 0:
            for _ in batches:
                pass
            return
        write_embedded(
            output,
            show_progress(batches, len(faces)),
            len(faces),
            faces.labels,
            _people(faces),
            _files(faces),
            _model_options(chosen),
        )
        print(f"{output}: {len(faces):,} embeddings of {faces.dataset.num_classes:,} people")


def find_and_align(
    dataset: "Dataset", chosen: argparse.Namespace, world: "Group | None" = None
) -> "tuple[Faces, dict[int, str]]":
    """The photographs with a face as faces, and why the others have none."""
    from facescale.datasets.walk import default_threads
    from facescale.evaluation.unaligned import align_on_the_way

    detector = open_chosen_detector(chosen)
    threads = default_threads()
    return align_on_the_way(dataset, detector, chosen.face, chosen.longest, threads, world)


def _say_problems(faces: "Faces", problems: dict[int, str]) -> None:
    """Which photographs are left out, on stderr: the first few."""
    if not problems:
        return
    whole = faces.dataset.dataset  # type: ignore[attr-defined]
    shown = [f"{whole.describe(index)}: {problems[index]}" for index in list(problems)[:_SHOWN]]
    more = f" and {len(problems) - _SHOWN:,} more" if len(problems) > _SHOWN else ""
    told = "; ".join(shown)
    print(printable(f"{len(problems):,} photographs left out: {told}{more}"), file=sys.stderr)


_SHOWN = 10


def _stream(
    network: "nn.Module",
    faces: "Faces",
    chosen: argparse.Namespace,
    device: "torch.device",
    world: "Group",
) -> "Iterator[Tensor]":
    """All embeddings on every rank, in order; at the end every rank knows all labels."""
    import torch

    from facescale.evaluation.streaming import embed_in_turns

    yield from embed_in_turns(
        network, faces.decode_range, len(faces), world, chosen.batch_size, device, chosen.flip
    )
    known = torch.from_numpy(faces.labels + 1).to(device)  # 0 where another rank decoded
    faces.labels[:] = (world.all_reduce_(known) - 1).cpu().numpy()


def _model_options(chosen: argparse.Namespace) -> dict[str, Any]:
    """What opens the same model again, from any folder."""
    options = {name: getattr(chosen, name) for name in MODEL_OPTIONS}
    return options | {"model": str(model_place(chosen).resolve())}


def _people(faces: "Faces") -> list[str]:
    """Names of the people, by label; numbers where the data set has no names."""
    names = getattr(faces.dataset, "class_names", None)
    return list(names or map(str, range(faces.dataset.num_classes)))


def _files(faces: "Faces") -> list[str]:
    """Where the images come from, if that is a file each."""
    if hasattr(faces.dataset, "class_names"):
        return [faces.dataset.describe(index) for index in range(len(faces))]
    return []
