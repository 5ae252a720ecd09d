"""The container that MXNet calls RecordIO: payloads in a `.rec`, their byte offsets in an `.idx`.

A payload is one part, or several where the magic number occurs in it: there it is cut and the
number left out, so that whoever looks for it finds only beginnings. Source: dmlc-core `recordio.h`.
"""

import mmap
import struct
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from facescale.files import write_whole

_MAGIC = 0xCED7230A
_PART = struct.Struct("<II")  # magic, kind << 29 | length; then the data, and zeros up to 4 bytes
_WHOLE, _FIRST, _MIDDLE, _LAST = range(4)
_MAX_LENGTH = 2**29 - 1
_CHUNK = 2**24

Keys = Sequence[int] | NDArray[np.int64]
"""Numbers of records: a range where they just count, so that they take no memory."""


class RecordFile:
    """A `.rec` file mapped into memory: any number of threads and forked processes may read it."""

    def __init__(self, path: Path) -> None:
        """Map `path`; ValueError if it is empty."""
        self.size = path.stat().st_size
        if self.size == 0:
            raise ValueError(f"{path} is empty; copy it again")
        with path.open("rb") as file:
            self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def read(self, offset: int) -> bytes:
        """The payload that begins at byte `offset`; ValueError if there is none, or it is cut."""
        parts, _ = self._find_parts(offset)
        return _MAGIC.to_bytes(4, "little").join([self._bytes[part] for part in parts])

    def scan(self) -> NDArray[np.int64]:
        """Where every record begins, found by going from one to the next; (n,)."""
        offsets = array("q")
        offset = 0
        while offset < self.size:
            offsets.append(offset)
            _, offset = self._find_parts(offset)
        return np.frombuffer(offsets, np.int64)

    def _find_parts(self, offset: int) -> tuple[list[slice], int]:
        """Where the parts of a record lie, and where the next record begins."""
        parts = []
        expected = (_WHOLE, _FIRST)
        while True:
            if not 0 <= offset <= self.size - _PART.size:
                raise ValueError(f"byte {offset} is outside the file of {self.size} bytes")
            magic, word = _PART.unpack_from(self._bytes, offset)
            kind, start = word >> 29, offset + _PART.size
            stop = start + (word & _MAX_LENGTH)
            if magic != _MAGIC or kind not in expected:
                raise ValueError(f"no record begins at byte {offset}")
            if stop > self.size:
                raise ValueError(f"the file ends inside the record at byte {offset}")
            parts.append(slice(start, stop))
            offset = start + (stop - start + 3) // 4 * 4
            if kind in (_WHOLE, _LAST):
                return parts, offset
            expected = (_MIDDLE, _LAST)


def write_record(file: BinaryIO, payload: bytes) -> None:
    """Append a record to `file`; ValueError if a part of it passes 512 MiB."""
    words = np.frombuffer(payload, "<u4", len(payload) // 4)
    cuts = (4 * np.flatnonzero(words == _MAGIC)).tolist()
    kinds = [_FIRST, *[_MIDDLE] * (len(cuts) - 1), _LAST] if cuts else [_WHOLE]
    starts, stops = [0, *(cut + 4 for cut in cuts)], [*cuts, len(payload)]
    for kind, start, stop in zip(kinds, starts, stops, strict=True):
        if stop - start > _MAX_LENGTH:
            raise ValueError(f"a record may have {_MAX_LENGTH} bytes, not {stop - start}")
        file.write(_PART.pack(_MAGIC, kind << 29 | stop - start) + payload[start:stop])
        file.write(bytes(-(stop - start) % 4))


def read_index(path: Path) -> tuple[Keys, NDArray[np.int64]]:
    """Keys and byte offsets, sorted by key, of an `.idx`: lines "key, tab, offset".

    Made for tens of millions of lines.

    Raises:
        ValueError: Something else in it, nothing at all, or a key twice.
    """
    keys: list[Keys] = []
    places = array("q")  # grows in place: pieces to be joined at the end would take twice as much
    count = 0
    with path.open("rb") as file:
        while text := file.read(_CHUNK) + file.readline():
            pairs = np.fromstring(text, np.int64, sep=" ").reshape(-1, 2)
            if len(pairs) != text.count(b"\n") + (not text.endswith(b"\n")):
                raise ValueError("not every line is a key and a byte offset")
            counts = bool((pairs[:, 0] == np.arange(count, count + len(pairs))).all())
            keys.append(range(count, count + len(pairs)) if counts else pairs[:, 0].copy())
            count += len(pairs)
            places.frombytes(pairs[:, 1].tobytes())
    if count == 0:
        raise ValueError("no lines")
    offsets = np.frombuffer(places, np.int64)
    if all(isinstance(block, range) for block in keys):
        return range(count), offsets
    every_key = np.concatenate(keys)
    order = every_key.argsort()
    every_key = every_key[order]
    if (twice := every_key[1:][every_key[1:] == every_key[:-1]]).size:
        raise ValueError(f"key {twice[0]} occurs twice")
    return every_key, offsets[order]


def write_index(path: Path, offsets: Sequence[int] | NDArray[np.int64]) -> None:
    """Write an `.idx` whose keys count from 0; it appears whole or not at all."""
    write_whole(path, (b"%d\t%d\n" % line for line in enumerate(offsets)))
