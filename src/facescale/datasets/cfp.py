"""Reads which images form pairs: LFW's `pairs.txt`, CFP's protocol, and CSV."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from facescale.evaluation.faces import SUFFIXES

_YES_NO = {"1": True, "0": False, "true": True, "false": False}


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


def _alternatives(path: Path) -> Iterator[Path]:
    yield path
    for suffix in SUFFIXES:
        yield path.with_name(path.stem + suffix)
        yield path.with_name(path.name + suffix)


def read_pairs_txt(path: Path, images: Path) -> list[Pair]:
    """LFW's list: `name 1 2` is a pair of one person, `name 1 other 2` one of two.

    The first line may say `folds pairs`, or the number of pairs: as many of each kind follow.
    Image 7 of a name is `name/name_0007.jpg` below `images`.

    Raises:
        ValueError: A line that is neither, or not as many as the first line says.
    """
    lines = [(i, line) for i, line in enumerate(_lines(path), 1) if line.strip()]
    expected = None
    if lines and all(field.isdigit() for field in lines[0][1].split()):
        sizes = [int(field) for field in lines.pop(0)[1].split()]
        expected = 2 * sizes[0] * (sizes[1] if len(sizes) > 1 else 1)
    files, pairs = Images(images), []

    def find(name: str, image: str) -> Path:
        return files.find(f"{name}/{name}_{int(image):04}.jpg")

    for number, line in lines:
        fields = [part.strip() for part in (line.split("\t") if "\t" in line else line.split())]
        named = {3: (0, 1, 0, 2), 4: (0, 1, 2, 3)}.get(len(fields))
        if named is None or not (fields[named[1]].isdigit() and fields[named[3]].isdigit()):
            raise ValueError(
                f"{path} line {number}: {line.strip()!r} is neither `name 1 2` nor `name 1 name 2`"
            )
        first, one, second, two = (fields[place] for place in named)
        pairs.append(Pair(find(first, one), find(second, two), len(fields) == 3))
    if expected not in (None, len(pairs)):
        raise ValueError(
            f"{path} holds {len(pairs)} pairs, but its first line says {expected}; fetch it again"
        )
    return pairs


def read_csv(path: Path, images: Path) -> list[Pair]:
    """Two paths below `images` and 0 or 1 (false, true) a line; a heading is passed over.

    Raises:
        ValueError: A line of another kind.
    """
    files, pairs = Images(images), []
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        for number, row in enumerate(csv.reader(file), 1):
            same = _YES_NO.get(row[2].strip().lower()) if len(row) >= 3 else None
            if same is None:
                if number == 1 or not row:
                    continue
                raise ValueError(
                    f"{path} line {number}: {','.join(row)!r} is not `path,path,0 or 1`"
                )
            pairs.append(Pair(files.find(row[0].strip()), files.find(row[1].strip()), same))
    return pairs


def find_cfp(folder: Path) -> Path | None:
    """The folder of CFP's protocol that is `folder` or lies in it; None if there is none."""
    places = (folder, folder / "Protocol")
    return next((p for p in places if (p / "Pair_list_F.txt").is_file()), None)


def read_cfp(protocol: Path, images: Path | None, kind: Literal["FP", "FF"] = "FP") -> list[Pair]:
    """CFP's ten folders of `same.txt` and `diff.txt`, in their order.

    Args:
        protocol: Has `Pair_list_F.txt`, `Pair_list_P.txt` and `Split`.
        images: Where the images are; None takes the places that the lists say.
        kind: "FP" compares frontal with profile photographs, "FF" frontal ones.

    Raises:
        ValueError: A list is damaged, or names no image of that number.
        OSError: A file is missing.
    """
    files = Images(protocol if images is None else images)
    lists = [_numbered(protocol / f"Pair_list_{letter}.txt") for letter in kind]
    folders = sorted(entry for entry in (protocol / "Split" / kind).iterdir() if entry.is_dir())
    pairs = []
    for folder in folders:
        for name, same in (("same.txt", True), ("diff.txt", False)):
            for number, line in enumerate(_lines(folder / name), 1):
                if not line.strip():
                    continue
                try:
                    one, two = (int(field) for field in line.split(","))
                    named = (lists[0][one], lists[1][two])
                except (ValueError, KeyError) as error:
                    raise ValueError(
                        f"{folder / name} line {number}: {line.strip()!r} is no pair of numbers "
                        "of the lists"
                    ) from error
                pairs.append(Pair(files.find(named[0]), files.find(named[1]), same))
    return pairs


def _numbered(path: Path) -> dict[int, str]:
    """A list of `number path` lines."""
    found = {}
    for number, line in enumerate(_lines(path), 1):
        head, _, name = line.strip().partition(" ")
        if not head:
            continue
        if not head.isdigit() or not name:
            raise ValueError(f"{path} line {number}: {line.strip()!r} is not a number and a path")
        found[int(head)] = name.strip()
    return found


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8-sig", errors="surrogateescape").splitlines()
