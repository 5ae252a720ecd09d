"""Photographs that are not aligned yet, as faces: a detector finds the five points of each."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePath

import numpy as np
import torch
from numpy.typing import NDArray

from facescale.data.dataset import Dataset
from facescale.data.images import decode_whole
from facescale.data.skip import WithoutSkipped
from facescale.detection.detector import LONGEST, Detector, Rule, choose_face, find_faces
from facescale.distributed import Group
from facescale.evaluation.faces import Faces

Report = Callable[[int, str], None]


class WithFaces(WithoutSkipped):
    """The photographs of a data set that have a face, with the names of its people."""

    def __init__(self, dataset: Dataset, without: NDArray[np.int64]) -> None:
        """Leave the photographs `without` a face out; ValueError if none remains."""
        super().__init__(dataset, without)
        if hasattr(dataset, "class_names"):
            self.class_names: list[str] = dataset.class_names


def align_on_the_way(
    dataset: Dataset,
    detector: Detector,
    rule: Rule = "largest",
    longest: int = LONGEST,
    num_threads: int = 2,
    world: Group | None = None,
) -> tuple[Faces, dict[int, str]]:
    """Find a face on each photograph, to be aligned when it is decoded. A collective.

    Args:
        dataset: The photographs.
        detector: Finds faces.
        rule: Which of several.
        longest: Pixels of the longer side of what the detector sees.
        num_threads: Of this rank.
        world: The ranks, which share the photographs; this process alone by default.

    Returns:
        The photographs that have a face, and why the others have none, by their number.

    Raises:
        ValueError: None of them has a face.
    """
    world = world or Group()
    points = np.zeros((len(dataset), 5, 2), np.float32)
    problems: dict[int, str] = {}

    def detect(index: int) -> None:
        try:
            points[index] = _points(dataset, index, detector, rule, longest)
        except (ValueError, OSError) as error:
            problems[index] = " ".join(str(error).split())

    with ThreadPoolExecutor(num_threads) as pool:
        for _ in pool.map(detect, range(world.rank, len(dataset), world.size)):
            pass
    for said in world.gather_texts(json.dumps(problems)):
        problems |= {int(index): why for index, why in json.loads(said).items()}
    world.all_reduce_(torch.from_numpy(points))
    if len(problems) == len(dataset):
        raise ValueError(f"none of {len(dataset)} photographs has a face: {problems[0]}")
    kept = WithFaces(dataset, np.array(sorted(problems), np.int64)) if problems else dataset
    places = np.delete(np.arange(len(dataset)), sorted(problems))
    names = (PurePath(dataset.describe(int(place))).as_posix() for place in places)
    return Faces(kept, dict(zip(names, points[places], strict=True))), dict(
        sorted(problems.items())
    )


def _points(
    dataset: Dataset, index: int, detector: Detector, rule: Rule, longest: int
) -> NDArray[np.float32]:
    encoded = dataset.read(index).encoded
    image = decode_whole(encoded) if isinstance(encoded, bytes) else encoded
    faces = find_faces(detector, image, longest)
    face = choose_face(faces, image, rule)
    if face is None:
        raise ValueError("several faces" if faces else "no face was found")
    return face.points
