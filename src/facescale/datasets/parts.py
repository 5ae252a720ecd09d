"""Writes sets of several files: OFRecord parts, tar shards, and folders of images per person."""

import os
import re
import tarfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from facescale.data.ofrecord import LENGTH
from facescale.datasets.output import GrowingFile

_BLOCK = 512
_SUFFIXES = {
    b"\xff\xd8\xff": "jpg",
    b"\x89PNG": "png",
    b"RIFF": "webp",
    b"BM": "bmp",
    b"II*\0": "tif",
    b"MM\0*": "tif",
    b"P5": "pgm",
    b"P6": "ppm",
}
_MAX_NAME = 200  # bytes of a folder's name
_OUTER = re.compile(r"([^/]+)/\1_[^/]+")


def suffix_of(image: bytes) -> str:
    """The suffix of an image file by its first bytes; `jpg` where they are unknown."""
    for start, suffix in _SUFFIXES.items():
        if image.startswith(start):
            return suffix
    return "jpg"


class _Parts:
    """Files of `part_size` samples each, one after the other."""

    def __init__(self, folder: Path, mark: Mapping[str, int], part_size: int) -> None:
        self._folder, self._part_size = folder, part_size
        self.count = mark.get("count", 0)
        self._file: GrowingFile | None = None
        if self.count % part_size or mark.get("size"):
            self._file = GrowingFile(self._path(self.count - 1), mark["size"])

    def _path(self, number: int) -> Path:
        return self._folder / self._name(number // self._part_size)

    def _name(self, part: int) -> str:
        raise NotImplementedError

    def _next(self) -> GrowingFile:
        """The file of the next sample, which is counted."""
        if self.count % self._part_size == 0 or self._file is None:
            self._end()
            self._file = GrowingFile(self._path(self.count), 0)
        self.count += 1
        return self._file

    def _end(self) -> None:
        """Finish the current file."""
        if self._file is not None:
            self._file.sync()
            self._file.close()
            self._file = None

    def mark(self) -> dict[str, int]:
        """How many samples there are, and where the last file ends."""
        return {"count": self.count, "size": self._file.sync() if self._file else 0}

    def finish(self) -> None:
        """Finish the last file."""
        self._end()

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            self._file.close()


class OFRecordWriter(_Parts):
    """Writes `part-00000`, ...; the layout is that of `data.ofrecord`."""

    def _name(self, part: int) -> str:
        return f"part-{part:05d}"

    def add(self, image: bytes, label: int) -> None:
        """Append a record; ValueError where the label is no int32, which OneFlow reads."""
        if label >= 2**31:
            raise ValueError(f"label {label} is beyond the int32 of OFRecord")
        message = _feature(b"encoded", 1, image) + _feature(b"label", 4, _varint(label))
        self._next().write(LENGTH.pack(len(message)) + message)


def _feature(name: bytes, kind: int, value: bytes) -> bytes:
    """An entry of the map: a name, and a list of kind `kind` with one value."""
    return _field(1, _field(1, name) + _field(2, _field(kind, _field(1, value))))


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    digits = bytearray()
    while value > 0x7F:
        digits.append(value & 0x7F | 0x80)
        value >>= 7
    digits.append(value)
    return bytes(digits)


class TarWriter(_Parts):
    """Writes `shard-000000.tar`, ... with `000000000.jpg` and `000000000.cls` for each sample."""

    def _name(self, part: int) -> str:
        return f"shard-{part:06d}.tar"

    def add(self, image: bytes, label: int) -> None:
        """Append the two members of a sample."""
        key, file = f"{self.count:09d}", self._next()
        file.write(_member(f"{key}.{suffix_of(image)}", image))
        file.write(_member(f"{key}.cls", b"%d" % label))

    def _end(self) -> None:
        if self._file is not None:
            self._file.write(bytes(2 * _BLOCK))  # marks the end of an archive
        super()._end()


def _member(name: str, content: bytes) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    return info.tobuf(tarfile.USTAR_FORMAT) + content + bytes(-len(content) % _BLOCK)


class Named(Protocol):
    """Names by label."""

    def __getitem__(self, label: int, /) -> str: ...


class FolderWriter:
    """Writes `person/00000000.jpg`; files are numbered through all people."""

    def __init__(self, folder: Path, mark: Mapping[str, int], names: Named) -> None:
        self._folder, self._names = folder, names
        self._count = mark.get("count", 0)
        self._made: set[int] = set()

    def add(self, image: bytes, label: int) -> None:
        """Write a file; ValueError where the name of its person cannot be that of a folder."""
        name = self._names[label]
        if label not in self._made:
            _check_name(name)
            (self._folder / name).mkdir(parents=True, exist_ok=True)
            self._made.add(label)
        path = self._folder / name / f"{self._count:08d}.{suffix_of(image)}"
        path.write_bytes(image)
        self._count += 1

    def mark(self) -> dict[str, int]:
        """How many files there are."""
        return {"count": self._count}

    def finish(self) -> None:
        """Nothing follows the files."""

    def close(self) -> None:
        """Nothing is open."""


def _check_name(name: str) -> None:
    """Names may come from strangers: none may lead out of the folder, or be hidden in it."""
    is_plain = "/" not in name or _OUTER.fullmatch(name)
    parts = name.split("/")
    if (
        not is_plain
        or any(part in ("", ".", "..") or part.startswith(".") for part in parts)
        or "\0" in name
        or max(len(os.fsencode(part)) for part in parts) > _MAX_NAME
    ):
        raise ValueError(
            f"the person {name[:80]!r} cannot be a folder of that name; rename the person in "
            "names.txt, or take it aside to have the folders named by label"
        )


def check_folders(names: Sequence[str] | None, num_classes: int) -> None:
    """Raise ValueError where folders would mix people: names that occur twice."""
    if names is not None and len(set(names)) != num_classes:
        name, count = Counter(names).most_common(1)[0]
        raise ValueError(
            f"{count} people are called {name[:80]!r}, and would share a folder; rename them"
        )
