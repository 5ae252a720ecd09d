"""Sets of pairs to verify: is it the same person? Read from and written to InsightFace's `.bin`."""

import codecs
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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


@dataclass(frozen=True, eq=False)
class PairSet:
    """Images 2i and 2i + 1 are pair i.

    Attributes:
        name: What the set is called in logs and tables.
        images: 2n of them.
        same: True where both images show one person; (n,).
    """

    name: str
    images: Sequence[Encoded]
    same: NDArray[np.bool_]

    def __post_init__(self) -> None:
        if not len(self.images) == 2 * len(self.same) > 0:
            raise ValueError(
                f"{self.name}: {len(self.images)} images for {len(self.same)} pairs; "
                "a set has at least one pair, and two images for each"
            )

    def distinct(self) -> tuple[list[int], NDArray[np.int64]]:
        """Where each image is shown first, and for all 2n images their place in that list.

        A photograph is in several pairs as a rule: LFW's 12,000 images are 7,701 different ones.
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

    It is a file from strangers, so its pickle may name nothing but what builds bytes and arrays.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Anything else than such a set; what a pickle wanted to run has not been run.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; give a .bin set of pairs such as lfw.bin")
    try:
        with path.open("rb") as file:
            encoded, flags = _Unpickler(file, encoding="bytes").load()
        images = [bytes(image) for image in encoded]
        same = np.array([{0: False, 1: True}[flag] for flag in flags])
    except Exception as error:  # damaged pickles raise errors of every kind
        raise ValueError(
            f"{path} is not a set of pairs, a pickle of (encoded images, is same): {error}"
        ) from error
    for index, image in enumerate(images):
        if not has_image_header(image):
            raise ValueError(f"{path}: image {index} is not a JPEG or other image; fetch it again")
    return PairSet(path.stem, images, same)


def save_pairs(path: str | Path, pairs: PairSet) -> None:
    """Write a `.bin` set that InsightFace's tools read too; pixels are stored as PNG."""
    images = [to_file(image) for image in pairs.images]
    Path(path).write_bytes(pickle.dumps((images, pairs.same.tolist()), protocol=4))


def _frombuffer(buffer: bytes, dtype: Any, shape: tuple[int, ...], order: str) -> NDArray[Any]:
    # numpy's own is a Python function, and a pickle could change the defaults of such a one.
    return np.frombuffer(buffer, dtype).reshape(shape)


_ALLOWED: dict[str, Any] = {
    "_codecs.encode": codecs.encode,  # so protocol 2 spells bytes
    "numpy.ndarray": np.ndarray,
    "numpy.dtype": np.dtype,
} | {
    f"{core}.{name}": function
    for core in ("numpy.core", "numpy._core")  # before numpy 2, and since
    for name, function in (
        ("multiarray._reconstruct", np.empty(0).__reduce__()[0]),
        ("multiarray.scalar", np.bool_().__reduce__()[0]),
        ("numeric._frombuffer", _frombuffer),
    )
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (full_name := f"{module}.{name}") not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {full_name}, which is refused")
        return _ALLOWED[full_name]
