"""Lists of images and labels: CSV with a header, and the `.lst` files of InsightFace and im2rec.

| kind | a line |
|---|---|
| CSV | a header that names `path` and `label`, then values; other columns are passed over |
| `.lst` of InsightFace (face2rec2) | aligned, tab, path, tab, label |
| `.lst` of MXNet (im2rec) | index, tab, label, tab, path |
| text | path, space, label |

Paths are relative to the list. Labels are numbers from 0, or names of people, numbered by their
order. Only where each line begins is kept in memory.
"""

import codecs
import csv
import os
import weakref
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from facescale.data.folder import printable
from facescale.data.found import Found, found_by_labels
from facescale.data.images import Sample
from facescale.data.sampletable import read_range
from facescale.data.sidecars import count_classes
from facescale.data.unreadable import unreadable
from facescale.files import require_regular

SUFFIXES = (".csv", ".tsv", ".lst", ".txt")
_MAX_LINE = 10_000
_MAX_NAME = 1000
_MAX_SHOWN = 500  # characters of a path in a message

Split = Callable[[str], tuple[str, str]]
"""Path and label of a line; ValueError where it has none."""


class ListFile:
    """The images that a list names. They are looked for when they are read.

    Attributes:
        path: The list.
        num_classes: One more than the largest label, or the number of names.
        class_names: The people by label, where the list has names.
    """

    def __init__(self, path: str | Path) -> None:
        """Read the list.

        Raises:
            ValueError: A line is no path and label, or there are ten times as many classes as
                people have images.
            FileNotFoundError: The first image is not where the list says.
        """
        self.path = Path(path)
        require_regular(self.path)
        self._descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._descriptor)
        starts, numbers, names = self._read()
        if not len(starts):
            raise ValueError(f"{self.path} lists no images")
        self._starts = np.frombuffer(starts, np.int64)
        labels = np.frombuffer(numbers, np.int64)
        self.class_names: list[str] | None = None
        if all(name.isascii() and name.isdecimal() for name in names):
            order = np.array([int(name) for name in names])
            self._labels = order[labels]
            self.num_classes = count_classes(self._labels, self.path, None)
        else:
            self.class_names = sorted(names)
            place = {name: label for label, name in enumerate(self.class_names)}
            self._labels = np.array([place[name] for name in names])[labels]
            self.num_classes = len(names)
        self._check_first()

    def _read(self) -> "tuple[array[int], array[int], dict[str, int]]":
        """Where each line begins, its label as written by number, and those numbers."""
        starts, labels = array("q"), array("q")
        numbers: dict[str, int] = {}
        with self.path.open("rb") as file:
            self._split, first = _kind_of(file, self.path)
            for number, start, line in _lines(file, self.path, first):
                try:
                    _, label = self._split(line)
                except ValueError as error:
                    raise ValueError(f"{self.path}, line {number}: {error}") from error
                starts.append(start)
                labels.append(numbers.setdefault(label, len(numbers)))
        return starts, labels, numbers

    def _check_first(self) -> None:
        first = self._file(0)
        if not os.path.exists(first):  # False for a path that is too long, too
            raise FileNotFoundError(
                f"{printable(first)[:_MAX_SHOWN]}, which {self.path} lists first, does not "
                "exist; paths in a list are relative to its folder"
            )

    def __len__(self) -> int:
        return len(self._starts)

    def read(self, index: int) -> Sample:
        """The image file of line `index` and its label; UnreadableRecord if it cannot be read."""
        try:
            path = self._file(index)
            size = path.stat().st_size
            return Sample(read_range(path, 0, size), int(self._labels[index]))
        except (OSError, ValueError) as error:
            raise unreadable(self, index, error) from error

    def describe(self, index: int) -> str:
        """The path of image `index`, and the list."""
        try:
            name = printable(self._file(index))
        except (OSError, ValueError):
            name = ""
        where = printable(self.path)
        return f"{name} of {where}" if 0 < len(name) < _MAX_SHOWN else f"{where} image {index}"

    def labels(self) -> NDArray[np.int64]:
        """The label of every image, (n,)."""
        return self._labels

    def found(self) -> Found:
        """The people by their names, or by the number of images of each one."""
        return found_by_labels(self._labels, self.num_classes, self.class_names)

    def _file(self, index: int) -> Path:
        line = os.pread(self._descriptor, _MAX_LINE, int(self._starts[index])).partition(b"\n")[0]
        name, label = self._split(_text(line))
        if "\0" in name:
            raise ValueError("the path has a zero byte")
        number = int(self._labels[index])
        if label != (str(number) if self.class_names is None else self.class_names[number]):
            raise ValueError("the list was written anew since it was opened; start again")
        return self.path.parent / name


def is_list(source: str) -> bool:
    """Whether a path is a file with the suffix of a list."""
    path = Path(source)
    return path.suffix.lower() in SUFFIXES and path.is_file()


def _lines(file: BinaryIO, path: Path, start: int) -> Iterator[tuple[int, int, str]]:
    """Number, first byte and text of the lines from byte `start` on; empty ones are left out."""
    file.seek(start)
    number = 1 if start <= len(codecs.BOM_UTF8) else 2  # behind a header
    while line := file.readline(_MAX_LINE + 1):
        if len(line) > _MAX_LINE:
            raise ValueError(
                f"{path}, line {number}: it is longer than {_MAX_LINE} bytes; give a list of paths "
                "and labels"
            )
        if text := _text(line).strip("\r\n"):
            yield number, start, text
        start += len(line)
        number += 1


def _kind_of(file: BinaryIO, path: Path) -> tuple[Split, int]:
    """How lines are split, and where the first one begins that is no header."""
    first = file.readline(_MAX_LINE + 1)
    mark = len(codecs.BOM_UTF8) if first.startswith(codecs.BOM_UTF8) else 0
    text = _text(first[mark:]).strip("\r\n")
    for delimiter in (",", "\t", ";"):
        header = [name.strip().lower() for name in cells(text, delimiter)]
        if "path" in header and "label" in header:
            return _by_columns(delimiter, header.index("path"), header.index("label")), len(first)
    if path.suffix.lower() == ".csv":
        raise ValueError(f"{path}: its first line must name the columns `path` and `label`")
    return (_by_tabs if "\t" in text else _by_space), mark


def _by_columns(delimiter: str, path: int, label: int) -> Split:
    def split(line: str) -> tuple[str, str]:
        values = cells(line, delimiter)
        if len(values) <= max(path, label):
            raise ValueError(f"{len(values)} columns are fewer than the header has")
        return _checked(values[path], values[label])

    return split


def cells(line: str, delimiter: str) -> list[str]:
    """The values of a line of CSV; ValueError where its quotes do not close."""
    if '"' not in line:
        return line.split(delimiter)
    try:
        return next(csv.reader([line], delimiter=delimiter, strict=True), [])
    except csv.Error as error:
        raise ValueError(f"{error}; a value with a line break cannot be read") from error


def _by_tabs(line: str) -> tuple[str, str]:
    """The path is the last value in MXNet's lists, and the second in InsightFace's."""
    values = line.split("\t")
    if len(values) >= 3 and not _is_number(values[1]):
        return _checked(values[1], values[2])
    if len(values) >= 3 and not _is_number(values[-1]):
        return _checked(values[-1], values[1])
    if len(values) == 2:
        return _checked(*values)
    raise ValueError("it is neither `aligned, path, label` nor `index, label, path`, with tabs")


def _by_space(line: str) -> tuple[str, str]:
    path, _, label = line.rpartition(" ")
    return _checked(path, label)


def _checked(path: str, label: str) -> tuple[str, str]:
    """`label` without the fraction `.0` that im2rec writes."""
    path, label = path.strip(), label.strip()
    if not path or not label:
        raise ValueError("give a path and a label")
    if len(label) > _MAX_NAME:
        raise ValueError(f"a label of {len(label)} characters is too long")
    if _is_number(label):
        number = float(label)
        if not (number.is_integer() and 0 <= number < 2**32 - 1):
            raise ValueError(f"label {label[:40]} is no whole number from 0 to {2**32 - 2}")
        label = str(int(number))
    return path, label


def _is_number(text: str) -> bool:
    if not text.isascii() or "_" in text:
        return False
    try:
        float(text)
    except ValueError:
        return False
    return text.strip().lower().lstrip("+-") not in ("nan", "inf", "infinity")


def _text(line: bytes) -> str:
    return os.fsdecode(line)
