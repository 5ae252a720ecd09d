"""Reads which images form pairs by the protocol of CFP."""

from pathlib import Path
from typing import Literal

from facescale.data.pairlist import Images, Pair


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
