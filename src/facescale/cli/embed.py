"""`facescale embed`: the embeddings of a data set, a folder or a photograph, in a file."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser, Namespace
from torch import Tensor

from facescale.cli.networks import add_network_options, open_network
from facescale.cli.progress import show_progress
from facescale.distributed import Group, processes, world_group
from facescale.evaluation.embedded import write_embedded
from facescale.evaluation.faces import Faces, Photographs, open_faces, read_points
from facescale.evaluation.streaming import embed_in_turns

HELP = "write the embeddings of images to a file"
MODEL_OPTIONS = ("model", "backbone", "family", "mean", "std", "flip")


def add_options(parser: ArgumentParser) -> None:
    """What the command understands."""
    add_network_options(parser)
    parser.add_argument("source", help="data set, folder of images per person, or photographs")
    parser.add_argument("output", help="the .npz to write")
    add_face_options(parser)


def add_face_options(parser: ArgumentParser) -> None:
    """How images become aligned faces."""
    parser.add_argument("--points", type=str, help="CSV of five points a photograph, to align it")
    parser.add_argument(
        "--stretch", type=bool, default=False, help="scale images that are not 112 x 112"
    )


def run(chosen: Namespace) -> None:
    """Embed, the ranks a batch in turn; the first one writes."""
    output = Path(chosen.output)
    if output.suffix != ".npz":
        raise ValueError(f"{output}: give a name that ends in .npz")
    with processes(chosen.device) as device:
        faces = open_chosen_faces(chosen.source, chosen)
        world = world_group()
        network = open_network(chosen, device)
        batches = _stream(network, faces, chosen, device, world)
        if world.rank > 0:
            for _ in batches:
                pass
            return
        write_embedded(
            output,
            show_progress(batches, len(faces)),
            len(faces),
            faces.labels,
            people_of(faces),
            _files(faces),
            model_options(chosen),
        )
        print(f"{output}: {len(faces):,} embeddings of {faces.dataset.num_classes:,} people")


def open_chosen_faces(source: str, chosen: Namespace) -> Faces:
    """The faces of `source`, as the options of `add_face_options` say."""
    points = None if chosen.points is None else read_points(chosen.points)
    return open_faces(source, points, chosen.stretch)


def model_options(chosen: Namespace) -> dict[str, Any]:
    """What opens the same model again, from any folder."""
    return {name: chosen[name] for name in MODEL_OPTIONS} | {
        "model": str(Path(chosen.model).resolve())
    }


def _stream(
    network: torch.nn.Module, faces: Faces, chosen: Namespace, device: torch.device, world: Group
) -> Iterator[Tensor]:
    """All embeddings on every rank, in order; at the end every rank knows all labels."""
    yield from embed_in_turns(
        network, faces.decode_range, len(faces), world, chosen.batch_size, device, chosen.flip
    )
    known = torch.from_numpy(faces.labels + 1).to(device)  # 0 where another rank decoded
    faces.labels[:] = (world.all_reduce_(known) - 1).cpu().numpy()


def people_of(faces: Faces) -> list[str]:
    """Names of the people, by label; numbers where the data set has no names."""
    names = getattr(faces.dataset, "class_names", None)
    return list(names or map(str, range(faces.dataset.num_classes)))


def _files(faces: Faces) -> list[str]:
    """Where the images come from, if that is a file each."""
    if isinstance(faces.dataset, Photographs) or hasattr(faces.dataset, "class_names"):
        return [faces.dataset.describe(index) for index in range(len(faces))]
    return []
