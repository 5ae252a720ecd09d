"""The container that MXNet calls RecordIO: payloads in a `.rec`, their byte offsets in an `.idx`.

A payload is stored as one part. Where the magic number occurs in it, it is cut into several and the
number left out, so that the number marks beginnings of parts only. Source: dmlc-core `recordio.h`.
"""

import os
import stat
import struct
import weakref
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from facescale.files import require_regular, write_whole

_MAGIC = 0xCED7230A
_PART = struct.Struct("<II")  # magic, kind << 29 | length; then the data, and zeros up to 4 bytes
_WHOLE, _FIRST, _MIDDLE, _LAST = range(4)
_MAX_LENGTH = 2**29 - 1
_CHUNK = 2**24
_WINDOW = 2**13  # bytes read at once, which hold most records of aligned faces
_MAX_PARTS = 2**16
_MAX_LINE = 100

MAGIC_BYTES = _MAGIC.to_bytes(4, "little")
"""What every part of a record begins with."""

MAX_PAYLOAD = 2**26
"""Bytes of one record, which is an image; a damaged header may state any length."""

Keys = Sequence[int] | NDArray[np.int64]
"""Numbers of records: a range where they are consecutive, which takes no memory."""


class TruncatedError(ValueError):
    """The file ends before a record does."""


class FramingError(ValueError):
    """No record begins where one should.

    Attributes:
        zeros: Whether there are zeros in place of its header, as where a disk lost a block.
    """

    def __init__(self, offset: int, magic: int) -> None:
        self.zeros = magic == 0
        found = f"0x{magic:08x} is in place of 0x{_MAGIC:08x}"
        if magic == _MAGIC:
            found = "a part of another one is"
        elif self.zeros:
            found = "zeros are"
        super().__init__(f"no record begins at byte {offset}, where {found}")


class RecordFile:
    """A `.rec` file: any number of threads and forked processes may read it at once.

    It is read and not mapped: a mapped file that somebody cuts short ends the process (SIGBUS).
    """

    def __init__(self, path: Path) -> None:
        """Open `path`; ValueError if it is empty or no regular file."""
        self.path = path
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        weakref.finalize(self, os.close, self._descriptor)
        status = os.fstat(self._descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{path} is not a file")
        self.size = status.st_size
        if self.size == 0:
            raise ValueError(f"{path} is empty; copy it again")

    def read(self, offset: int, limit: int = MAX_PAYLOAD) -> bytes:
        """The first `limit` bytes of the payload that begins at byte `offset`.

        Raises:
            ValueError: There is none, or it is longer than `MAX_PAYLOAD`.
            TruncatedError: The file ends inside it.
            OSError: The system cannot read the file.
        """
        window = os.pread(self._descriptor, _WINDOW, offset) if 0 <= offset < self.size else b""
        if len(window) >= _PART.size:  # nearly all records are whole and inside the window
            magic, length = _PART.unpack_from(window)  # of a whole one the kind is 0
            if magic == _MAGIC and length <= len(window) - _PART.size:
                return window[_PART.size : _PART.size + min(length, limit)]
        pieces, size = [], 0
        for start, stop in self._parts(offset, window):
            if (size := size + stop - start) > MAX_PAYLOAD:
                raise ValueError(f"the record at byte {offset} has more than {MAX_PAYLOAD} bytes")
            stop = min(stop, start + limit)
            if stop - offset <= len(window):
                pieces.append(window[start - offset : stop - offset])
            else:
                pieces.append(self.slice(start, stop))
            if size >= limit:
                break
        return (MAGIC_BYTES.join(pieces) if len(pieces) > 1 else pieces[0])[:limit]

    def slice(self, start: int, stop: int) -> bytes:
        """Bytes of the file; TruncatedError if it has become shorter since it was opened."""
        data = os.pread(self._descriptor, stop - start, start)
        if len(data) != stop - start:
            size = os.fstat(self._descriptor).st_size
            raise TruncatedError(
                f"the file has {size} bytes and had {self.size} when it was opened"
            )
        return data

    def begins(self, offset: int) -> bool:
        """Whether the header of a record's first part is at byte `offset`."""
        header = os.pread(self._descriptor, _PART.size, offset)
        if len(header) < _PART.size:
            return False
        magic, word = _PART.unpack(header)
        return magic == _MAGIC and word >> 29 in (_WHOLE, _FIRST)

    def end(self, offset: int) -> int:
        """Where the next record begins after the one at byte `offset`; errors as in `read`."""
        *_, (_, stop) = self._parts(offset, b"")
        return _aligned(stop)

    def scan(self) -> NDArray[np.int64]:
        """Where every record begins, found by going from one to the next; (n,)."""
        offsets = array("q")
        offset = 0
        while offset < self.size:
            offsets.append(offset)
            offset = self.end(offset)
        return np.frombuffer(offsets, np.int64)

    def _parts(self, offset: int, window: bytes) -> Iterator[tuple[int, int]]:
        """Where the parts of a record begin and end; `window` is what lies at `offset`."""
        first, expected = offset, (_WHOLE, _FIRST)
        for _ in range(_MAX_PARTS):
            if not 0 <= offset <= self.size - _PART.size:
                raise TruncatedError(f"byte {offset} is outside the file of {self.size} bytes")
            if offset - first + _PART.size <= len(window):
                magic, word = _PART.unpack_from(window, offset - first)
            else:
                magic, word = _PART.unpack(self.slice(offset, offset + _PART.size))
            kind, start = word >> 29, offset + _PART.size
            stop = start + (word & _MAX_LENGTH)
            if magic != _MAGIC or kind not in expected:
                raise FramingError(offset, magic)
            if stop > self.size:
                raise TruncatedError(f"the file ends inside the record at byte {offset}")
            yield start, stop
            if kind in (_WHOLE, _LAST):
                return
            offset, expected = _aligned(stop), (_MIDDLE, _LAST)
        raise ValueError(f"the record at byte {first} has more than {_MAX_PARTS} parts")


def _aligned(offset: int) -> int:
    return (offset + 3) // 4 * 4


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

    Parsed by numpy in blocks: sets have tens of millions of lines.

    Raises:
        ValueError: Another kind of line, no line, or a key twice.
    """
    keys: list[Keys] = []
    places = array("q")  # grows in place: pieces to be joined at the end would take twice as much
    count = 0
    require_regular(path)
    with path.open("rb") as file:
        while text := file.read(_CHUNK) + file.readline(_MAX_LINE):
            numbers = np.fromstring(text, np.int64, sep=" ")
            if len(numbers) != 2 * (text.count(b"\n") + (not text.endswith(b"\n"))):
                raise ValueError("not every line is a key and a byte offset")
            pairs = numbers.reshape(-1, 2)
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
