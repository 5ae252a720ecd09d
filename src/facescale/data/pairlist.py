"""Verification sets as text: a pair a line, by the names of its image files.

Two forms are read:

    10 300                          LFW's pairs.txt: folds and pairs of a kind in each, then
    Abel_Pacheco 1 4                two images of a person, Abel_Pacheco/Abel_Pacheco_0001.jpg, ...
    Abdel_Madi 1 Dean_Barker 1      or one of each of two people

    a/1.jpg a/2.jpg 1               two files and whether they show one person,
    a/1.jpg,b/1.jpg,0               between spaces, tabs or commas

Images are aligned faces of 112 x 112.
"""

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np

from facescale.data.images import IMAGE_SIZE, decode_whole
from facescale.data.pairs import PairSet

SUFFIXES = (".txt", ".csv", ".tsv", ".list")
_IMAGE_SUFFIXES = (".jpg", ".png", ".jpeg", ".bmp", ".webp")
_MAX_LINES = 10_000_000

Pair = tuple[str, str, bool]
"""Two files and whether they show one person."""


def load_pair_list(path: Path, images: Path | None = None) -> PairSet:
    """Read a list of pairs and its image files, each once.

    The people of LFW's form are known by their names. Those of the other form are taken from the
    folders of the files where these agree with every line.

    Args:
        path: The list.
        images: Folder of the images; that of the list when not given.

    Raises:
        FileNotFoundError: An image is missing.
        ValueError: A line is neither form, or the images are not of 112 x 112.
    """
    root = path.parent if images is None else images
    pairs = list(_pairs(path, root))
    if not pairs:
        raise ValueError(f"{path} has no pair")
    files: dict[str, bytes] = {}
    for names in pairs:
        for name in names[:2]:
            if name not in files:
                files[name] = _read(root / name, path)
    _check_aligned(root / pairs[0][0], files[pairs[0][0]])
    encoded = [files[name] for names in pairs for name in names[:2]]
    same = np.array([one for _, _, one in pairs], bool)
    return PairSet(path.stem, encoded, same, _people(pairs))


def _pairs(path: Path, root: Path) -> Iterator[Pair]:
    text = path.read_bytes().decode(errors="replace")
    for number, line in enumerate(text.splitlines()[:_MAX_LINES], 1):
        fields = re.split(r"[,\t]+", line.strip()) if re.search(r"[,\t]", line) else line.split()
        fields = [field.strip() for field in fields if field.strip()]
        if not fields or fields[0].startswith("#"):
            continue
        if number == 1 and all(field.isdecimal() for field in fields):
            continue  # the head of LFW's form
        pair = _pair(fields, root)
        if pair is None:
            raise ValueError(
                f"{path}, line {number} is no pair: {line!r:.80}; give `FILE FILE 0|1`, or LFW's "
                "`NAME N N` and `NAME N NAME N`"
            )
        yield pair


def _pair(fields: list[str], root: Path) -> Pair | None:
    numbers = [field.isdecimal() for field in fields]
    if numbers == [False, False, True] and fields[2] in ("0", "1"):
        return fields[0], fields[1], fields[2] == "1"
    if numbers == [False, True, True]:
        name, first, second = fields
        return _lfw_file(name, first, root), _lfw_file(name, second, root), True
    if numbers == [False, True, False, True]:
        one, first, other, second = fields
        return _lfw_file(one, first, root), _lfw_file(other, second, root), False
    return None


def _lfw_file(name: str, number: str, root: Path) -> str:
    """`NAME/NAME_0001.jpg`, with the suffix that is there."""
    stem = f"{name}/{name}_{int(number):04d}"
    found = (suffix for suffix in _IMAGE_SUFFIXES if (root / f"{stem}{suffix}").is_file())
    return f"{stem}{next(found, _IMAGE_SUFFIXES[0])}"


def _read(file: Path, path: Path) -> bytes:
    if not file.is_file():
        raise FileNotFoundError(f"{path}: there is no {file}; name the folder by --images")
    return file.read_bytes()


def _check_aligned(file: Path, content: bytes) -> None:
    height, width, _ = decode_whole(content).shape
    if (height, width) != (IMAGE_SIZE, IMAGE_SIZE):
        raise ValueError(
            f"{file} has {width} x {height} pixels, so it is not an aligned face of 112 x 112"
        )


def _people(pairs: list[Pair]) -> "np.ndarray[tuple[int, int], np.dtype[np.int64]] | None":
    """(n, 2) numbers of the people, by the folders of their images; None where these disagree."""
    folders = [[PurePosixPath(name).parent.as_posix() for name in names[:2]] for names in pairs]
    if any((one == other) != same for (one, other), (*_, same) in zip(folders, pairs, strict=True)):
        return None
    numbers: dict[str, int] = {}
    rows = [[numbers.setdefault(name, len(numbers)) for name in both] for both in folders]
    return np.array(rows, np.int64)
