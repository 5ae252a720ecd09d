"""Lists photographs in folders of any depth, one by one, and shares them between processes."""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

from facescale.data.images import IMAGE_SUFFIXES


class Photograph(NamedTuple):
    """A file, and the file that its aligned face gets; both relative, with slashes."""

    name: str
    output: str


def walk(
    root: Path, suffix: str, folder: str = "", around: frozenset[tuple[int, int]] = frozenset()
) -> Iterator[Photograph]:
    """The photographs below `root`, sorted within each folder; hidden files are passed over.

    A face is called as its photograph, with `suffix`; where two photographs of a folder differ in
    their suffix alone, both keep it: `a.jpg` and `a.png` become `a.jpg.jpg` and `a.png.jpg`.

    Args:
        root: The folder that is searched.
        suffix: Of the faces.
        folder: Relative to `root`, with a slash at its end; where the search is now.
        around: Device and number of the folders that `folder` lies in.

    Raises:
        OSError: A folder cannot be read.
        ValueError: The faces of two photographs would have one name, or a link leads to a folder
            that it lies in.
    """
    status = os.stat(root / folder)
    here = (status.st_dev, status.st_ino)
    if here in around:
        raise ValueError(f"{root / folder} is a link to a folder that it lies in; remove it")
    files, folders = [], []
    with os.scandir(root / folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                folders.append(entry.name)
            elif entry.name.lower().endswith(IMAGE_SUFFIXES):
                files.append(entry.name)
    stems = Counter(os.path.splitext(name)[0] for name in files)
    taken: dict[str, str] = {}
    for name in sorted(files):
        stem = os.path.splitext(name)[0]
        output = f"{stem if stems[stem] == 1 else name}{suffix}"
        if taken.setdefault(output, name) != name:
            raise ValueError(
                f"{root / folder}: the faces of {name} and {taken[output]} would both be called "
                f"{output}; rename one of them"
            )
        yield Photograph(f"{folder}{name}", f"{folder}{output}")
    for name in sorted(folders):
        yield from walk(root, suffix, f"{folder}{name}/", around | {here})


def share(photographs: Iterator[Photograph], rank: int, size: int) -> Iterator[Photograph]:
    """Those of one process: by a hash of the name, which needs no list of all."""
    for photograph in photographs:
        if size == 1 or crc32(os.fsencode(photograph.name)) % size == rank:
            yield photograph
