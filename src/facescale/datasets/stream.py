"""Reads a data set in a given order, ahead in threads and in bounded memory, with a digest."""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from facescale.data.dataset import Dataset
from facescale.data.images import Encoded, to_file
from facescale.data.unreadable import UnreadableRecord
from facescale.datasets.ahead import ahead

CHUNK = 64
"""Images that a thread reads at a time."""

MODULUS = 2**256

_REMEDY = "repair or remove the image, or pass over such images with --on-error skip"


class Item(NamedTuple):
    """An image as it will be written.

    Attributes:
        image: The image file.
        label: The class of its person.
        digest: Of the person's name and the image; the sum of all says whether two sets are equal
            in any order.
    """

    image: bytes
    label: int
    digest: int


class Skipped(NamedTuple):
    """An image that cannot be read, or not be used as it is."""

    where: str
    reason: str


class Names:
    """The names of a set's people: its own, or the labels with eight digits."""

    def __init__(self, dataset: Dataset) -> None:
        self.own: Sequence[str] | None = getattr(dataset, "class_names", None)

    def __getitem__(self, label: int) -> str:
        return f"{label:08d}" if self.own is None else self.own[label]


def read_ahead(
    dataset: Dataset,
    chunks: Iterable[NDArray[np.int64]],
    prepare: Callable[[Encoded], bytes] = to_file,
    threads: int = 2,
    skip: bool = False,
) -> Iterator[list[Item | Skipped]]:
    """The images at `chunks` of indices, in their order.

    Args:
        dataset: Where they come from.
        chunks: Indices, at best `CHUNK` at a time.
        prepare: Makes the file to be written from what was read; ValueError where it will not.
        threads: That read and prepare.
        skip: Whether unusable images are passed over.

    Raises:
        ValueError: An image is unusable and `skip` is False.
    """
    names = Names(dataset)

    def work(indices: NDArray[np.int64]) -> list[Item | Skipped]:
        return [_read(dataset, names, index, prepare, skip) for index in indices.tolist()]

    return ahead(work, chunks, threads)


def _read(
    dataset: Dataset, names: Names, index: int, prepare: Callable[[Encoded], bytes], skip: bool
) -> Item | Skipped:
    try:
        encoded, label = dataset.read(index)
        if not 0 <= label < dataset.num_classes:
            raise ValueError(f"label {label} but num_classes is {dataset.num_classes}")
        image = prepare(encoded)
    except UnreadableRecord as error:
        where, reason = error.where, error.reason
    except (ValueError, OSError) as error:
        where = dataset.describe(index)
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    else:
        return Item(image, label, digest_of(names[label], image))
    if not skip:
        raise ValueError(f"{where}: {reason}; {_REMEDY}")
    return Skipped(where, reason)


def digest_of(name: str, image: bytes) -> int:
    """SHA-256 of a person's name, a zero and an image file, as a number."""
    sha = hashlib.sha256(os.fsencode(name) + b"\0")
    sha.update(image)
    return int.from_bytes(sha.digest(), "big")
