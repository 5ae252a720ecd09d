"""Training sets in tar shards, as WebDataset has them: a folder, a pattern, or URLs.

A sample is the members in a row whose names are equal up to the first dot: `0001.jpg` and
`0001.cls`. Its label is the number in `.cls`, or `label` (else `cls`) of `.json`. Shards are read
through once; where the images lie is kept, and then every image is read by itself.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

from facescale.data.found import Found, found_by_labels
from facescale.data.images import Sample
from facescale.data.recordfile import MAX_PAYLOAD
from facescale.data.remote import RemoteFiles, is_url
from facescale.data.sampletable import (
    NO_LABEL,
    facts_of,
    labels_in,
    read_range,
    table_of,
)
from facescale.data.sidecars import count_classes, read_names, read_property
from facescale.data.tarfiles import BLOCK, Member, members, states_size
from facescale.data.unreadable import unreadable

IMAGES = ("jpg", "jpeg", "png", "webp", "bmp", "ppm", "pgm", "tif", "tiff")
_LABELS = ("cls", "json")
_MAX_LABEL = 2**16  # bytes
_MAX_SHARDS = 1_000_000
_NAME = re.compile(r"((?:.*/)?[^/.]*)\.([^/]*)", re.DOTALL)
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d{1,18})\.\.(\d{1,18})")


class Files(Protocol):
    """Shards by number, wherever they lie."""

    def __len__(self) -> int: ...

    def open(self, number: int) -> BinaryIO:
        """A shard as a whole file."""

    def read(self, number: int, offset: int, size: int) -> bytes:
        """Some bytes of a shard."""

    def name(self, number: int) -> str:
        """For messages."""

    def facts(self) -> list[str]:
        """The state of all shards: another one, other texts."""


class LocalFiles:
    """Shards on this machine."""

    def __init__(self, paths: list[Path]) -> None:
        self._paths = paths
        self._facts = facts_of(paths)

    def __len__(self) -> int:
        return len(self._paths)

    def open(self, number: int) -> BinaryIO:
        """The file."""
        return self._paths[number].open("rb")

    def read(self, number: int, offset: int, size: int) -> bytes:
        """Bytes of the file."""
        return read_range(self._paths[number], offset, size)

    def name(self, number: int) -> str:
        """The path."""
        return str(self._paths[number])

    def facts(self) -> list[str]:
        """Names, sizes and times."""
        return self._facts


class TarShards:
    """A training set in tar shards; images are numbered through the shards.

    Attributes:
        num_classes: As a file `property` beside the shards has it, else as the labels have it.
        class_names: The people by label, where there is a `names.txt` beside them.
    """

    def __init__(self, source: str) -> None:
        """Open a folder of shards, a shard, or a pattern of paths or URLs: `x-{000..099}.tar`.

        Raises:
            FileNotFoundError: A shard is missing.
            ValueError: A shard is damaged, or a sample has no image or no label.
            OSError: A server does not answer.
        """
        self._source = source
        folder: Path | None = None
        if is_url(source):
            self._files: Files = RemoteFiles(expand(source))
        else:
            paths = _paths(source)
            folder = paths[0].parent
            self._files = LocalFiles(paths)
        self._table = table_of(folder, self._files.facts(), lambda: _scan(self._files))
        labels = self.labels()
        stated = None if folder is None else read_property(folder)
        self.num_classes = stated or count_classes(labels[labels >= 0], source, folder)
        self.class_names = None if folder is None else read_names(folder, self.num_classes)

    def __len__(self) -> int:
        return len(self._table)

    def read(self, index: int) -> Sample:
        """The image file of sample `index` and its label; UnreadableRecord if it cannot be read."""
        part, offset, size, label = self._table[index].item()
        try:
            data = self._files.read(part, offset - BLOCK, BLOCK + size)
            if not states_size(data[:BLOCK], size):
                raise ValueError("the archive was written anew since it was opened; start again")
            return Sample(data[BLOCK:], label)
        except (OSError, ValueError) as error:
            raise unreadable(self, index, error) from error

    def describe(self, index: int) -> str:
        """`shard-000001.tar byte 1536`, with the folder: where the image begins."""
        part, offset, _, _ = self._table[index].item()
        return f"{self._files.name(part)} byte {offset}"

    def labels(self) -> NDArray[np.int64]:
        """The label of every image, (n,)."""
        return labels_in(self._table)

    def found(self) -> Found:
        """The people by their names, or by the number of images of each one."""
        return found_by_labels(self.labels(), self.num_classes, self.class_names)


def is_tar(source: str) -> bool:
    """Whether a source is a shard, a pattern of shards, or a folder of them."""
    if source.endswith(".tar"):
        return is_url(source) or "{" in source or Path(source).is_file()
    path = Path(source)
    return path.is_dir() and any(map(_is_shard, path.iterdir()))


def _is_shard(path: Path) -> bool:
    return path.suffix == ".tar" and not path.name.startswith(".")  # of macOS: ._x.tar


def expand(pattern: str) -> list[str]:
    """The names that a pattern stands for: `{000..099}` counts, `{a,b}` lists.

    Raises:
        ValueError: A brace has neither, or there are too many names.
    """
    names = [pattern]
    while (brace := _BRACES.search(names[0])) is not None:
        if counted := _RANGE.fullmatch(brace[1]):
            first, last = int(counted[1]), int(counted[2])
            width = len(counted[1]) if counted[1].startswith("0") else 1
            count = last - first + 1
            parts = (f"{number:0{width}d}" for number in range(first, last + 1))
        else:
            listed = brace[1].split(",")
            count = len(listed) if len(listed) > 1 else 0
            parts = (part for part in listed)
        if count < 1 or count * len(names) > _MAX_SHARDS:
            raise ValueError(
                f"{pattern}: {{{brace[1]}}} stands for no names, or for too many; "
                "give {000000..000099} or {a,b}"
            )
        filled = list(parts)
        names = [_BRACES.sub(lambda _, p=part: p, name, 1) for name in names for part in filled]  # type: ignore[misc]
    return names


def _paths(source: str) -> list[Path]:
    folder = Path(source)
    if folder.is_dir():
        return sorted(filter(_is_shard, folder.iterdir()))
    return [Path(name) for name in ([source] if folder.is_file() else expand(source))]


def _scan(files: Files) -> Iterator[tuple[int, int, int, int]]:
    """Every sample of every shard: shard, where its image lies, its length, label."""
    for number in range(len(files)):
        with files.open(number) as file:
            for key, parts in _samples(file, files.name(number)):
                where = f"{files.name(number)}: sample {key!r}"
                image = next((parts[kind] for kind in IMAGES if kind in parts), None)
                if image is None:
                    raise ValueError(f"{where} has no image ({' '.join(IMAGES)})")
                if image.size > MAX_PAYLOAD - BLOCK:
                    raise ValueError(f"{where} has an image of {image.size} bytes")
                yield number, image.offset, image.size, _label(file, parts, where)


def _samples(file: BinaryIO, where: str) -> Iterator[tuple[str, dict[str, Member]]]:
    """The members of each sample by their extensions; others are passed over."""
    key: str | None = None
    parts: dict[str, Member] = {}
    for member in members(file, where):
        split = _NAME.fullmatch(member.name)
        base = member.name.rpartition("/")[2]
        if split is None or base.startswith((".", "__")):
            continue
        kind = split[2].lower()
        if split[1] != key:
            if key is not None:
                yield key, parts
            key, parts = split[1], {}
        if kind in parts:
            raise ValueError(f"{where}: sample {key!r} has two files .{kind}")
        if kind in IMAGES or kind in _LABELS:
            parts[kind] = member
    if key is not None:
        yield key, parts


def _label(file: BinaryIO, parts: dict[str, Member], where: str) -> int:
    """The label of a sample; ValueError where it has none."""
    for kind in _LABELS:
        if kind not in parts:
            continue
        member = parts[kind]
        if member.size > _MAX_LABEL:
            raise ValueError(f"{where} has a .{kind} of {member.size} bytes")
        file.seek(member.offset)
        text = file.read(member.size).decode(errors="replace").strip()
        value = _in_json(text, where) if kind == "json" else text
        if value is None:
            continue
        if not (value.isascii() and value.isdecimal() and len(value) < 11) or (
            int(value) >= NO_LABEL
        ):
            raise ValueError(f"{where} has the label {value[:40]!r}, which is no number from 0")
        return int(value)
    raise ValueError(f"{where} has no label: neither .cls nor .json with `label`")


def _in_json(text: str, where: str) -> str | None:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} has a damaged .json: {type(error).__name__}") from error
    if isinstance(values, dict):
        for name in ("label", "cls"):
            if name in values:
                return str(values[name])
    return None
