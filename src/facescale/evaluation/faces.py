"""Faces to embed: images that are aligned already, and photographs with five points each."""

import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePath

import numpy as np
from numpy.typing import NDArray

from facescale.data.dataset import Dataset, open_dataset
from facescale.data.images import (
    IMAGE_SIZE,
    IMAGE_SUFFIXES,
    Pixels,
    Sample,
    decode,
    decode_whole,
)
from facescale.evaluation.alignment import align

Points = Mapping[str, NDArray[np.float32]]


class Photographs:
    """Image files, one person each, named after the file."""

    def __init__(self, files: Sequence[Path | str]) -> None:
        """Take the files in their order; FileNotFoundError if one does not exist."""
        self.files = [Path(file) for file in files]
        for file in self.files:
            if not file.is_file():
                raise FileNotFoundError(f"{file} is not a file; give photographs")
        self.class_names = [file.stem for file in self.files]

    @property
    def num_classes(self) -> int:
        """One for each file."""
        return len(self.files)

    def __len__(self) -> int:
        return len(self.files)

    def read(self, index: int) -> Sample:
        """File `index`; its label is its number."""
        return Sample(self.files[index].read_bytes(), index)

    def describe(self, index: int) -> str:
        """The path of file `index`."""
        return str(self.files[index])


class Faces:
    """Images of a data set as aligned faces, and their labels once they have been decoded.

    Attributes:
        dataset: Where they come from.
        labels: (n,) label of each image; -1 before it is decoded.
    """

    def __init__(self, dataset: Dataset, points: Points | None = None, stretch: bool = False):
        """Create a view of `dataset` as aligned faces.

        Args:
            dataset: The images.
            points: Five points (5, 2) of each, by the end of its path; None takes the images as
                aligned.
            stretch: Scale images of another size to 112 x 112, as training does, instead of
                refusing them.
        """
        self.dataset = dataset
        self.labels = np.full(len(dataset), -1, np.int64)
        self._points = points
        self._stretch = stretch

    def __len__(self) -> int:
        return len(self.dataset)

    def decode_range(self, start: int, stop: int) -> Pixels:
        """Faces (stop - start, 112, 112, 3); ValueError names an image that cannot be one."""
        faces = np.empty((stop - start, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
        for index in range(start, stop):
            sample = self.dataset.read(index)
            self.labels[index] = sample.label
            try:
                faces[index - start] = self._face(sample, index)
            except ValueError as error:
                raise ValueError(f"{self.dataset.describe(index)}: {error}") from error
        return faces

    def _face(self, sample: Sample, index: int) -> Pixels:
        encoded = sample.encoded
        if self._points is not None:
            whole = decode_whole(encoded) if isinstance(encoded, bytes) else encoded
            return align(whole, find_points(self._points, self.dataset.describe(index)))
        if self._stretch:
            return decode(encoded)
        whole = decode_whole(encoded) if isinstance(encoded, bytes) else encoded
        if whole.shape != (IMAGE_SIZE, IMAGE_SIZE, 3):
            raise ValueError(
                f"{whole.shape[1]} x {whole.shape[0]} pixels, so not an aligned face; align "
                "it (--align, or `facescale data align`), give its five points by --points, or "
                "--stretch if it is one in another size"
            )
        return whole


def open_faces(source: Path | str, points: Points | None = None, stretch: bool = False) -> Faces:
    """Faces of a data set, of a folder of photographs, or of one photograph.

    Raises:
        FileNotFoundError: There is nothing.
        ValueError: Neither of them.
    """
    path = Path(source)
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return Faces(Photographs([path]), points, stretch)
    if path.is_dir():
        entries = [entry for entry in path.iterdir() if not entry.name.startswith(".")]
        files = sorted(entry for entry in entries if entry.suffix.lower() in IMAGE_SUFFIXES)
        if files and not any(entry.is_dir() for entry in entries):
            return Faces(Photographs(files), points, stretch)
    return Faces(open_dataset(source), points, stretch)


def read_points(path: Path | str) -> Points:
    """Five points a file, from CSV with a heading: `file`, and `x0 y0` to `x4 y4`.

    Files without a face have no numbers there, or `detected` 0.

    Raises:
        FileNotFoundError: No such file.
        ValueError: A column is missing, or no number, or a file has two faces.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; give a CSV of five points a photograph")
    points: dict[str, NDArray[np.float32]] = {}
    with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        try:
            for number, name, found in _point_rows(csv.DictReader(file)):
                if name in points and not np.array_equal(points[name], found):
                    raise ValueError(
                        f"line {number}: {name} has other points in an earlier line; keep one face "
                        "of each photograph"
                    )
                points[name] = found
        except (csv.Error, ValueError) as error:
            raise ValueError(f"{path}: {error}") from error
    return points


def _point_rows(table: "csv.DictReader[str]") -> Iterator[tuple[int, str, NDArray[np.float32]]]:
    """Line, file and points (5, 2) of each row that has a face."""
    names = [f"{axis}{i}" for i in range(5) for axis in "xy"]
    missing = [name for name in ("file", *names) if name not in (table.fieldnames or ())]
    if missing:
        raise ValueError(f"no column {missing[0]!r}; it needs file, x0, y0, ... y4")
    for row in table:
        if row.get("detected") == "0" or not row["x0"]:
            continue
        try:
            numbers = [float(row[name]) for name in names]
        except (TypeError, ValueError) as error:
            raise ValueError(f"line {table.line_num}: {error}") from error
        yield table.line_num, row["file"], np.array(numbers, np.float32).reshape(5, 2)


def find_points(points: Points, path: str) -> NDArray[np.float32]:
    """Points of the file whose path ends in the longest known name; ValueError if none is known."""
    parts = PurePath(path).parts
    for begin in range(len(parts)):
        name = PurePath(*parts[begin:]).as_posix()
        if name in points:
            return points[name]
    raise ValueError("no five points are known of it: no face was found, or it is not in the list")
