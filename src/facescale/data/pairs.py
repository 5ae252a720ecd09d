"""Verification sets: pairs of images of one or of two people, in InsightFace's `.bin` format."""

import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from facescale.data.images import (
    IMAGE_SIZE,
    Encoded,
    Pixels,
    decode_into_,
    has_image_header,
    to_file,
)
from facescale.data.picklevalues import Array
from facescale.data.safepickle import read_pickle
from facescale.files import write_whole


@dataclass(frozen=True, eq=False)
class PairSet:
    """Images 2i and 2i + 1 are pair i.

    Attributes:
        name: For logs and tables.
        images: 2n of them.
        same: True where both images show one person; (n,).
        people: Numbers of the two people of each pair, if they are known; (n, 2).
    """

    name: str
    images: Sequence[Encoded]
    same: NDArray[np.bool_]
    people: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        if not len(self.images) == 2 * len(self.same) > 0:
            raise ValueError(
                f"{self.name}: {len(self.images)} images for {len(self.same)} pairs; "
                "a set has at least one pair, and two images for each"
            )

    def distinct(self) -> tuple[list[int], NDArray[np.int64]]:
        """The first occurrence of each image, and for all 2n images their index in that list.

        Most images are in several pairs: LFW's 12,000 images are 7,701 different ones.
        """
        places: dict[bytes, int] = {}
        first: list[int] = []
        place = np.empty(len(self.images), np.int64)
        for index, image in enumerate(self.images):
            content = image if isinstance(image, bytes) else image.tobytes()
            place[index] = places.setdefault(content, len(first))
            if place[index] == len(first):
                first.append(index)
        return first, place

    def decode(self, indices: Sequence[int]) -> Pixels:
        """Images by number, (len(indices), 112, 112, 3); ValueError names a damaged one."""
        pixels = np.empty((len(indices), IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
        for row, index in enumerate(indices):
            try:
                decode_into_(pixels[row], self.images[index])
            except ValueError as error:
                raise ValueError(f"{self.name} image {index}: {error}") from error
        return pixels


def load_pairs(path: str | Path) -> PairSet:
    """Read a `.bin` set: a pickle of (2n encoded images, n bools), by Python 2 or 3.

    The pickle is interpreted by `safepickle`, never by an unpickler, so nothing in it is executed.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Anything else than such a set.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; give a .bin set of pairs such as lfw.bin")
    try:
        with path.open("rb") as file:
            images, same = _parts(read_pickle(file))
    except ValueError as error:
        raise ValueError(
            f"{path} is not a set of pairs, a pickle of (encoded images, is same): {error}"
        ) from error
    seen: set[int] = set()  # a pickle may name one image a million times
    for index, image in enumerate(images):
        if id(image) not in seen and not has_image_header(image):
            raise ValueError(f"{path}: image {index} is not a JPEG or other image; fetch it again")
        seen.add(id(image))
    return PairSet(path.stem, images, np.array(same, bool))


def _parts(content: object) -> tuple[list[bytes], list[bool]]:
    """The images and flags of a set's pickle; ValueError if it holds anything else."""
    if not isinstance(content, tuple | list) or len(content) != 2:
        raise ValueError("it does not hold two lists")
    images, flags = content
    if not isinstance(images, tuple | list):
        raise ValueError("it does not hold two lists")
    if isinstance(flags, Array) and len(flags.shape) == 1 and flags.shape[0] <= len(images):
        flags = flags.numpy().tolist()
    if not isinstance(flags, tuple | list):
        raise ValueError("it does not hold two lists")
    for index, flag in enumerate(flags):
        if not isinstance(flag, int) or flag not in (0, 1):
            raise ValueError(f"flag {index} is neither true nor false")
    return [_image(index, image) for index, image in enumerate(images)], [bool(f) for f in flags]


def _image(index: int, image: object) -> bytes:
    if isinstance(image, Array) and image.dtype == "|u1":  # of any shape: the bytes of a file
        image = image.data
    if not isinstance(image, bytes):
        raise ValueError(f"image {index} is neither bytes nor an array of uint8")
    return image


def save_pairs(path: str | Path, pairs: PairSet) -> None:
    """Write a `.bin` set that InsightFace's tools read too; pixels are stored as PNG.

    An image object that is in several pairs is stored once. OSError if it cannot be written.
    """
    images = [to_file(image) for image in pairs.images]
    write_whole(Path(path), [pickle.dumps((images, pairs.same.tolist()), protocol=4)])
