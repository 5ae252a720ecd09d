"""The index of a record file in binary: read in a moment, where the text would be parsed again.

`train.idx.cache` lies beside `train.idx`, or in the user's cache folder where that cannot be
written. It is used only while both files have the sizes, times and sample of the text that it was
made from. It is written whole or not at all, so any number of ranks may open a set at once. It is
read and not mapped: a mapped file that somebody cuts short ends the process (SIGBUS). 42 million
records take 340 MB.
"""

import hashlib
import logging
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from facescale.data.recordfile import Keys
from facescale.files import cache_folder, require_regular, write_whole

WORTH_KEEPING = 1_000_000
"""Records; the text of fewer is parsed in a tenth of a second."""

# A file is the format, a digest of the state, one of what follows, sizes, offsets, maybe keys
_FORMAT = b"FSINDEX2"
_DIGEST_SIZE = 16
_SIZES = struct.Struct("<4q")  # how many records, the last, classes, whether keys are listed
_START = len(_FORMAT) + 2 * _DIGEST_SIZE + _SIZES.size
_BLOCKS, _BLOCK_SIZE = 16, 4096  # of a sample

_log = logging.getLogger(__name__)


class Index(NamedTuple):
    """Where records begin.

    Attributes:
        keys: (n,), sorted.
        offsets: (n,) in bytes, in the order of the keys.
        last: Index of the record that is furthest back in the file.
        num_classes: As the labels have it; 0 where nobody had to read them.
    """

    keys: Keys
    offsets: NDArray[np.int64]
    last: int
    num_classes: int = 0


class IndexCache:
    """The place of the index of two files in the state in which they are now."""

    def __init__(self, index_path: Path, records_path: Path) -> None:
        """`index_path` need not exist: its records were found by a scan."""
        self._paths = list(_places(index_path))
        self._state = _state(index_path, records_path)

    def load(self) -> Index | None:
        """The kept index; None if there is none, or it is stale or damaged."""
        for path in self._paths:
            try:
                index = _read(path, self._state)
            except FileNotFoundError:
                continue
            except (OSError, ValueError) as error:
                _log.info("%s", error)
                continue
            if index is not None:
                return index
            _log.info("%s does not belong to these files: it will be made anew", path)
        return None

    def keep(self, index: Index) -> None:
        """Write an index down at the first place that can be written, if one is worth it."""
        if len(index.offsets) < WORTH_KEEPING:
            return
        listed = not isinstance(index.keys, range)
        arrays = [index.offsets, np.asarray(index.keys)] if listed else [index.offsets]
        body = [np.ascontiguousarray(array, "<i8").view(np.uint8).data for array in arrays]
        sizes = _SIZES.pack(len(index.offsets), index.last, index.num_classes, listed)
        proof = _digest(b"".join([sizes, *map(_sample, body)]))
        header = _FORMAT + self._state + proof + sizes
        for path in self._paths:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                write_whole(path, [header, *body])
            except OSError as error:
                _log.info("%s", error)
            else:
                return


def _read(path: Path, state: bytes) -> Index | None:
    """What a file holds, if it is whole and of this state."""
    require_regular(path)
    with path.open("rb") as file:
        header = file.read(_START)
        if len(header) < _START or not header.startswith(_FORMAT + state):
            return None
        size = os.fstat(file.fileno()).st_size
        return _parse(header, file, size)


def _parse(header: bytes, file: BinaryIO, size: int) -> Index | None:
    """What follows the header, if the file of `size` bytes is whole."""
    sizes = header[-_SIZES.size :]
    count, last, num_classes, listed = _SIZES.unpack(sizes)
    if not (0 <= last < count and num_classes >= 0 and listed in (0, 1)):
        return None
    if size != _START + 8 * count * (1 + listed):
        return None
    arrays = [np.fromfile(file, "<i8", count) for _ in range(1 + listed)]
    if any(len(array) != count for array in arrays):  # cut since
        return None
    proof = _digest(b"".join([sizes, *(_sample(array.view(np.uint8).data) for array in arrays)]))
    if header[-_SIZES.size - _DIGEST_SIZE : -_SIZES.size] != proof:
        return None
    return Index(arrays[1] if listed else range(count), arrays[0], last, num_classes)


def _places(index_path: Path) -> Iterator[Path]:
    """Where an index may be kept, the best place first."""
    yield index_path.with_name(f"{index_path.name}.cache")
    if folder := cache_folder():
        whose = _digest(os.fsencode(index_path.resolve())).hex()
        yield folder / f"{whose}.idx.cache"


def _state(index_path: Path, records_path: Path) -> bytes:
    """What changes when either file does; a set may lack the text."""
    known = []
    for path in (index_path, records_path):
        if path.exists():
            status = path.stat()
            known += [status.st_size, status.st_mtime_ns]
        else:
            known += [-1, -1]
    text = b""
    if known[0] > 0:
        with index_path.open("rb") as file:
            text = b"".join(
                os.pread(file.fileno(), _BLOCK_SIZE, start) for start in _starts(known[0])
            )
    return _digest(struct.pack("<4q", *known) + text)


def _sample(data: memoryview) -> bytes:
    return b"".join(bytes(data[start : start + _BLOCK_SIZE]) for start in _starts(len(data)))


def _starts(size: int) -> list[int]:
    """Where blocks begin that are spread evenly, the first and the last of `size` among them."""
    starts: list[int] = np.linspace(0, max(0, size - _BLOCK_SIZE), _BLOCKS).astype(int).tolist()
    return starts


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=_DIGEST_SIZE).digest()
