"""Verification sets as text: a pair a line, by the names of its image files.

Two forms are read:

    10 300                          LFW's pairs.txt: folds and pairs of a kind in each, then
    Abel_Pacheco 1 4                two images of a person, Abel_Pacheco/Abel_Pacheco_0001.jpg, ...
    Abdel_Madi 1 Dean_Barker 1      or one of each of two people

    a/1.jpg a/2.jpg 1               two files and whether they show one person,
    a/1.jpg,b/1.jpg,0               between spaces, tabs or commas

The second form may have a heading and more columns.
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from facescale.data.images import IMAGE_SIZE, IMAGE_SUFFIXES, header_size
from facescale.data.listfile import cells
from facescale.data.pairs import PairSet

SUFFIXES = (".txt", ".csv", ".tsv", ".list")
_YES_NO = {"1": True, "0": False, "true": True, "false": False}
_MAX_SHOWN = 80  # characters of a line in a message


class Pair(NamedTuple):
    """Two images, and whether they show one person."""

    first: Path
    second: Path
    same: bool


class Images:
    """Finds the image files that a list names, whatever their suffix is now."""

    def __init__(self, root: Path) -> None:
        """Look below `root`."""
        self.root = root
        self._found: dict[str, Path] = {}

    def find(self, name: str) -> Path:
        """The file `name`, or one with another suffix; the first guess if there is none.

        Leading folders that are not there are dropped: `../Data/Images/001/01.jpg` may lie at
        `001/01.png`.
        """
        if name not in self._found:
            parts = [part for part in Path(name).parts if part != ".."]
            places = [
                self.root / name,
                *(self.root.joinpath(*parts[i:]) for i in range(len(parts))),
            ]
            there = (place for guess in places for place in _alternatives(guess))
            self._found[name] = next(filter(Path.is_file, there), places[0])
        return self._found[name]

    def of_person(self, name: str, number: str) -> Path:
        """LFW's image `number` of a person: `NAME/NAME_0001.jpg`."""
        return self.find(f"{name}/{name}_{int(number):04}.jpg")


def _alternatives(path: Path) -> Iterator[Path]:
    yield path
    for suffix in IMAGE_SUFFIXES:
        yield path.with_name(path.stem + suffix)
        yield path.with_name(path.name + suffix)


def read_pair_list(path: Path, root: Path) -> list[Pair]:
    """The pairs of a list; their files are looked for below `root`, and need not exist.

    Raises:
        OSError: The list cannot be read.
        ValueError: A line is neither form, there are none, or not as many as LFW's first line says.
    """
    images, pairs = Images(root), list[Pair]()
    expected: int | None = None
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
        for number, line in enumerate(file, 1):
            try:
                fields = _fields(line)
            except ValueError as error:
                raise ValueError(f"{path} line {number}: {error}") from error
            if not fields or fields[0].startswith("#"):
                continue
            if number == 1 and len(fields) <= 2 and all(map(str.isdecimal, fields)):
                expected = 2 * math.prod(map(int, fields))
            elif (pair := _pair(fields, images)) is not None:
                pairs.append(pair)
            elif number > 1 or not _is_heading(line, fields):
                raise ValueError(
                    f"{path} line {number}: {line.strip()!r:.{_MAX_SHOWN}} is neither `FILE FILE "
                    "0|1` nor LFW's `NAME N N` or `NAME N NAME N`"
                )
    if not pairs:
        raise ValueError(f"{path} holds no pairs")
    if expected not in (None, len(pairs)):
        raise ValueError(
            f"{path} holds {len(pairs)} pairs, but its first line says {expected}; fetch it again"
        )
    return pairs


def _delimiter(line: str) -> str | None:
    return next((mark for mark in "\t," if mark in line), None)


def _fields(line: str) -> list[str]:
    """What stands between tabs, else commas, else spaces; empty values are left out."""
    delimiter = _delimiter(line)
    values = line.split() if delimiter is None else cells(line, delimiter)
    return [value.strip() for value in values if value.strip()]


def _is_heading(line: str, fields: list[str]) -> bool:
    return len(fields) >= 3 and bool(_delimiter(line)) and not any(map(str.isdecimal, fields))


def _pair(fields: list[str], images: Images) -> Pair | None:
    is_number = [field.isdecimal() for field in fields]
    if is_number[1:] == [True, True]:
        name, one, two = fields
        return Pair(images.of_person(name, one), images.of_person(name, two), True)
    if len(fields) == 4 and is_number[1] and is_number[3]:
        name, one, other, two = fields
        return Pair(images.of_person(name, one), images.of_person(other, two), False)
    same = _YES_NO.get(fields[2].lower()) if len(fields) >= 3 else None
    return None if same is None else Pair(images.find(fields[0]), images.find(fields[1]), same)


def load_pair_list(path: Path, images: Path | None = None) -> PairSet:
    """Read a list of pairs and its image files, each once.

    People are known by the folders of the files, where these agree with every line.

    Args:
        path: The list.
        images: Folder of the images; that of the list when not given.

    Raises:
        FileNotFoundError: An image is missing.
        ValueError: As of `read_pair_list`, or an image is not of 112 x 112.
    """
    pairs = read_pair_list(path, path.parent if images is None else images)
    files: dict[Path, bytes] = {}
    for file in (file for pair in pairs for file in pair[:2]):
        if file not in files:
            files[file] = _read_aligned(file, path)
    encoded = [files[file] for pair in pairs for file in pair[:2]]
    same = np.array([pair.same for pair in pairs])
    return PairSet(path.stem, encoded, same, _people(pairs))


def _read_aligned(file: Path, source: Path) -> bytes:
    if not file.is_file():
        raise FileNotFoundError(f"{source}: there is no {file}; name the folder by --images")
    content = file.read_bytes()
    try:
        width, height = header_size(content)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    if (width, height) != (IMAGE_SIZE, IMAGE_SIZE):
        raise ValueError(
            f"{file} has {width} x {height} pixels, so it is not an aligned face of 112 x 112"
        )
    return content


def _people(pairs: Sequence[Pair]) -> NDArray[np.int64] | None:
    """(n, 2) numbers of the people, by the folders of their images; None where these disagree."""
    folders = [(pair.first.parent, pair.second.parent) for pair in pairs]
    if any((one == two) != pair.same for (one, two), pair in zip(folders, pairs, strict=True)):
        return None
    numbers: dict[Path, int] = {}
    rows = [[numbers.setdefault(name, len(numbers)) for name in both] for both in folders]
    return np.array(rows, np.int64)
