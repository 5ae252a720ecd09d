"""Where the samples of a set of several files lie: found by one reading, and kept for the next.

A table is kept beside the set, or in the user's cache folder where that cannot be written. It is
used only while the files have the names, sizes and times that it was made from. It is written whole
or not at all, so any number of ranks may open a set at once. A sample takes 20 bytes.
"""

import hashlib
import logging
import os
import stat
import struct
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from facescale.data.recordfile import MAX_PAYLOAD, TruncatedError
from facescale.files import cache_folder, require_regular, write_whole

ROW = np.dtype([("part", "<u4"), ("offset", "<i8"), ("size", "<u4"), ("label", "<u4")])
"""Number of the file, byte and length of the sample in it, label."""
NO_LABEL = 2**32 - 1
"""In place of the label of a damaged sample."""

WORTH_KEEPING = 10_000
"""Samples; fewer are found in a moment."""

NAME = ".samples.cache"
_FORMAT = b"FSTABLE2"  # 1 may lack samples behind a block of zeros in a tar archive
_HEADER = struct.Struct("<8s16s16sQ")  # format, digests of the files and of the rows, their number

Table = NDArray[np.void]
Row = tuple[int, int, int, int]
_log = logging.getLogger(__name__)


def table_of(folder: Path | None, facts: Sequence[str], scan: Callable[[], Iterable[Row]]) -> Table:
    """Where the samples of some files lie, (n,) of `ROW`: as it was kept, else by a scan.

    Args:
        folder: That of the files; None where they are not here.
        facts: Their state: another one, other texts.
        scan: Reads them through; part, offset, size and label of each sample.
    """
    cache = _TableCache(folder, facts)
    table = cache.load()
    if table is None:
        table = _make_table(scan())
        cache.keep(table)
    return table


def _make_table(rows: Iterable[Row]) -> Table:
    pack = struct.Struct("<IqII").pack
    table = bytearray()
    for row in rows:
        table += pack(*row)
    return np.frombuffer(table, ROW)


def labels_in(table: Table) -> NDArray[np.int64]:
    """The labels, (n,); -1 for a damaged sample."""
    labels = table["label"].astype(np.int64)
    return np.where(labels == NO_LABEL, -1, labels)


class _TableCache:
    """The place of the table of some files in the state in which they are now."""

    def __init__(self, folder: Path | None, facts: Sequence[str]) -> None:
        self._state = _digest("\n".join(facts).encode(errors="surrogateescape"))
        self._num_parts = len(facts)
        self._places = [] if folder is None else [folder / NAME]
        if (own := cache_folder()) is not None:
            self._places.append(own / f"{self._state.hex()}.samples")

    def load(self) -> Table | None:
        """The kept table; None if there is none, or it is stale or damaged."""
        for path in self._places:
            try:
                table = self._read(path)
            except FileNotFoundError:
                continue
            except (OSError, ValueError) as error:
                _log.info("%s", error)
                continue
            if table is not None:
                return table
            _log.info("%s does not belong to these files: it will be made anew", path)
        return None

    def keep(self, table: Table) -> None:
        """Write a table down at the first place that can be written, if it is worth it."""
        if len(table) < WORTH_KEEPING:
            return
        body = table.tobytes()
        header = _HEADER.pack(_FORMAT, self._state, _digest(body), len(table))
        for path in self._places:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                write_whole(path, [header, body])
            except OSError as error:
                _log.info("%s", error)
            else:
                return

    def _read(self, path: Path) -> Table | None:
        require_regular(path)
        with path.open("rb") as file:
            header = file.read(_HEADER.size)
            size = os.fstat(file.fileno()).st_size
            if len(header) < _HEADER.size or not header.startswith(_FORMAT + self._state):
                return None
            _, _, proof, count = _HEADER.unpack(header)
            if size != _HEADER.size + count * ROW.itemsize:
                return None
            table = np.fromfile(file, ROW, count)
        if len(table) != count or count == 0 or _digest(table.tobytes()) != proof:
            return None
        fits = table["part"].max() < self._num_parts and table["offset"].min() >= 0
        return table if fits and table["size"].max() <= MAX_PAYLOAD else None


def facts_of(paths: Sequence[Path]) -> list[str]:
    """Name, size and time of each file.

    Raises:
        ValueError: One is not a regular file.
        OSError: One cannot be opened.
    """
    facts = []
    for path in paths:
        require_regular(path)
        status = path.stat()
        facts.append(f"{path.name} {status.st_size} {status.st_mtime_ns}")
    return facts


def read_range(path: Path, offset: int, size: int) -> bytes:
    """Bytes of a file, which is opened for it: a set has more files than a process may hold.

    Raises:
        TruncatedError: The file ends before.
        ValueError: It is not a regular file.
        OSError: The system cannot read it.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{path} is not a regular file")
        if not 0 <= size <= MAX_PAYLOAD:
            raise ValueError(f"{path}: {size} bytes are more than {MAX_PAYLOAD}")
        data = os.pread(descriptor, size, offset)
    finally:
        os.close(descriptor)
    if len(data) != size:
        raise TruncatedError(
            f"{path} has {status.st_size} bytes, and something at byte {offset} has {size}"
        )
    return data


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()
