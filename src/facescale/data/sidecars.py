"""Small files beside a data set: `property`, `names.txt` and `train.labels`."""

import codecs
import hashlib
import logging
import os
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from facescale.files import require_regular, write_whole

PROPERTY = "property"
NAMES = "names.txt"

_MAX_NAMES = 2**30  # bytes
_MAX_SPARSE = 10  # classes for each one that has images, where the labels alone tell the number
_FORMAT = b"FSLABEL1"
_HEADER = struct.Struct("<8sQ16s")  # format, number of labels, digest of them; then uint32 each
MAX_EXACT = 2**32
"""Classes that the labels of `train.labels` can number."""

_log = logging.getLogger(__name__)


def read_property(folder: Path) -> int | None:
    """The number of classes that `property` states ("num_classes,height,width"); None without one.

    Raises:
        ValueError: It begins with something else.
    """
    path = folder / PROPERTY
    if not path.exists():
        return None
    require_regular(path)
    with path.open("rb") as file:
        text = file.read(1000).decode("utf-8-sig", errors="replace")  # some begin with a BOM
    first = text.split(",")[0].strip()[:20]
    if not (first.isascii() and first.isdecimal()) or int(first) == 0:
        raise ValueError(
            f"{path} begins with {first!r}, not with the number of classes as in "
            "'324,112,112'; correct it, or delete it to have them counted"
        )
    return int(first)


def write_property(folder: Path, num_classes: int, size: int) -> None:
    """Write `property`, for square images of `size` pixels."""
    write_whole(folder / PROPERTY, [f"{num_classes},{size},{size}\n".encode()])


def read_names(folder: Path, num_classes: int) -> list[str] | None:
    """The names of the people by label, one on each line of `names.txt`; None without one.

    A byte order mark, and carriage returns where each line has one, are no part of the names.

    Raises:
        ValueError: It has another number of lines than there are classes, or is too large.
    """
    path = folder / NAMES
    if not path.exists():
        return None
    require_regular(path)
    if path.stat().st_size > _MAX_NAMES:
        raise ValueError(f"{path} is larger than {_MAX_NAMES} bytes; move the file aside")
    text = path.read_bytes().removeprefix(codecs.BOM_UTF8)
    breaks = text.count(b"\n")
    lines = breaks + (text[-1:] not in (b"", b"\n"))
    if lines != num_classes:  # counted before each is an object
        raise ValueError(
            f"{path} names {lines} people, but the set has {num_classes} classes; give each class "
            "a line, or move the file aside"
        )
    is_dos = text.count(b"\r\n") == breaks  # else a carriage return is of a name
    return [os.fsdecode(line) for line in text.split(b"\r\n" if is_dos else b"\n")[:lines]]


def write_names(folder: Path, names: Sequence[str]) -> None:
    """Write `names.txt`; ValueError where a name has a line break."""
    for name in names:
        if "\n" in name:
            raise ValueError(f"the name {name!r} has a line break; rename the person")
    write_whole(folder / NAMES, (os.fsencode(name) + b"\n" for name in names))


def read_labels(path: Path, count: int) -> NDArray[np.uint32] | None:
    """The exact labels of `count` images, in the order of their keys; None without the file.

    Raises:
        ValueError: It is damaged, or of another number of images.
    """
    if not path.exists():
        return None
    require_regular(path)
    with path.open("rb") as file:
        header = file.read(_HEADER.size)
        size = os.fstat(file.fileno()).st_size
        is_whole = len(header) == _HEADER.size and size == _HEADER.size + 4 * count
        labels = np.fromfile(file, "<u4", count) if is_whole else np.zeros(0, "<u4")
    if header != _HEADER.pack(_FORMAT, len(labels), _digest(labels)) or len(labels) != count:
        raise ValueError(
            f"{path} is damaged, or does not belong to the {count} images beside it; copy the set "
            "again"
        )
    return labels


def write_labels(path: Path, labels: NDArray[np.uint32]) -> None:
    """Write what `read_labels` reads; (n,) in the order of the images' keys."""
    labels = np.ascontiguousarray(labels, "<u4")
    header = _HEADER.pack(_FORMAT, len(labels), _digest(labels))
    write_whole(path, [header, labels.tobytes()])


def _digest(labels: NDArray[np.uint32]) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(labels).data, digest_size=16).digest()


def count_classes(labels: NDArray[np.int64], path: Path | str, folder: Path | None) -> int:
    """The number of classes where nothing but the labels tells it; (n,) valid labels.

    Raises:
        ValueError: There are none, or ten times as many classes as people with images.
    """
    people = len(np.unique(labels))
    if not people:
        raise ValueError(f"{path}: no image has a label; copy the set again")
    num_classes = 1 + int(labels.max())
    if num_classes > max(1000, _MAX_SPARSE * people):
        way_out = f", or write '{num_classes},112,112' to {folder / PROPERTY}" if folder else ""
        raise ValueError(
            f"{path}: {people} people have images, but the labels go up to {num_classes - 1}; "
            "number them anew from 0 with `facescale data check SET --repair OUT --renumber`"
            f"{way_out} if so many classes are meant"
        )
    return num_classes
