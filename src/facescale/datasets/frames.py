"""Finds the records of a damaged `.rec` file, to its end, without an index.

Where the framing is broken, the next magic number at a multiple of four bytes begins the next
record: a writer never leaves the number inside of a payload.
"""

from array import array
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from facescale.data.found import Found, digest
from facescale.data.images import Sample
from facescale.data.recordfile import MAGIC_BYTES, RecordFile
from facescale.data.recordio import MAX_CLASSES, split_record
from facescale.data.unreadable import UnreadableRecord

MAX_RANGES = 1000
"""Lost ranges that are listed; all others are counted."""

_BLOCK = 2**24
_HEAD = 4096  # bytes that show whether a record has an image


class Lost(NamedTuple):
    """Bytes [start, stop) of a file that belong to no whole record."""

    start: int
    stop: int
    zeros: bool
    """Whether all of them are 0."""

    def __str__(self) -> str:
        what = "zeros" if self.zeros else "no whole record"
        return f"bytes {self.start:,} to {self.stop:,}: {what}"


@dataclass
class Frames:
    """Where the records of a file begin, and what of it is lost.

    Attributes:
        offsets: (n,) of the whole records, in bytes, in their order in the file.
        lost: The first lost ranges.
        num_lost: All of them.
        lost_bytes: In all of them.
    """

    offsets: NDArray[np.int64]
    lost: list[Lost] = field(default_factory=list)
    num_lost: int = 0
    lost_bytes: int = 0


def find_frames(file: RecordFile) -> Frames:
    """Go through a file from record to record, and from magic number to magic number where broken.

    Raises:
        OSError: The system cannot read it.
    """
    offsets, frames, offset = array("q"), Frames(np.zeros(0, np.int64)), 0
    magic = _Magic(file)
    while offset < file.size:
        stop = _end(file, offset)
        if stop is not None and (stop >= file.size or file.begins(stop)):
            offsets.append(offset)
            offset = stop
            continue
        following = magic.next(offset + 4)
        if stop is not None and following >= stop:  # this one is whole, and what follows is not
            offsets.append(offset)
            _lose(file, frames, stop, following)
        else:
            _lose(file, frames, offset, following)
        offset = following
    frames.offsets = np.frombuffer(offsets, np.int64) if offsets else frames.offsets
    return frames


def _end(file: RecordFile, offset: int) -> int | None:
    """Where the record that begins at `offset` ends; None if none does, or it is not whole."""
    try:
        return file.end(offset)
    except ValueError:
        return None


class _Magic:
    """Finds the magic number, and keeps the block that was read last: damage may be dense."""

    def __init__(self, file: RecordFile) -> None:
        self._file, self._start, self._block = file, 0, b""

    def next(self, start: int) -> int:
        """The next place from `start` on where a record may begin; the end of the file if none."""
        start = -(-start // 4) * 4
        while start < self._file.size:
            if not self._start <= start < self._start + len(self._block):
                self._start = start
                self._block = self._file.slice(start, min(start + _BLOCK, self._file.size))
            place = self._block.find(MAGIC_BYTES, start - self._start)
            while place >= 0:
                if place % 4 == 0 and self._file.begins(self._start + place):
                    return self._start + place
                place = self._block.find(MAGIC_BYTES, place + 1)
            start = self._start + len(self._block)
        return self._file.size


def _lose(file: RecordFile, frames: Frames, start: int, stop: int) -> None:
    if stop <= start:
        return
    frames.num_lost += 1
    frames.lost_bytes += stop - start
    if frames.lost and frames.lost[-1].stop == start:  # one range, found in pieces
        last = frames.lost.pop()
        frames.num_lost -= 1
        frames.lost.append(Lost(last.start, stop, last.zeros and _is_zero(file, start, stop)))
    elif len(frames.lost) < MAX_RANGES:
        frames.lost.append(Lost(start, stop, _is_zero(file, start, stop)))


def _is_zero(file: RecordFile, start: int, stop: int) -> bool:
    return all(
        not file.slice(place, min(place + _BLOCK, stop)).strip(b"\0")
        for place in range(start, stop, _BLOCK)
    )


class Salvaged:
    """The images that a damaged `.rec` file still has, found without an index.

    Attributes:
        path: The `.rec` file.
        frames: Where its records are, and what is lost.
        num_classes: As `property` has it; otherwise one more than the largest label.
    """

    def __init__(self, path: Path) -> None:
        """Search `path`; ValueError if it has no image."""
        self.path = path
        self._file = RecordFile(path)
        self.frames = find_frames(self._file)
        labels = np.fromiter(
            (self._label(offset) for offset in self.frames.offsets.tolist()), np.float64
        )
        is_image = ~np.isnan(labels)
        self._offsets, labels = self.frames.offsets[is_image], labels[is_image]
        if not len(self._offsets):
            raise ValueError(f"{path} has no image that is left; copy it again")
        self.num_classes = self._stated() or _count(labels)

    def __len__(self) -> int:
        return len(self._offsets)

    def read(self, index: int) -> Sample:
        """An image and its label; UnreadableRecord if the label is no whole number."""
        label, image = split_record(self._file.read(int(self._offsets[index])))
        if not label.is_integer():
            reason = f"label {label} is not a whole number"
            raise UnreadableRecord(self.describe(index), reason, index)
        return Sample(image, int(label))

    def describe(self, index: int) -> str:
        """`train.rec byte 12345`: keys are not known."""
        return f"{self.path} byte {self._offsets[index]}"

    def found(self) -> Found:
        """The digest is of where the images lie."""
        people = digest([b"%d" % self.num_classes, np.ascontiguousarray(self._offsets)])
        return Found(len(self), self.num_classes, None, people)

    def _label(self, offset: int) -> float:
        """NaN for a record without image."""
        try:
            label, image = split_record(self._file.read(offset, _HEAD))
        except (ValueError, OSError):
            return np.nan
        return (label if np.isfinite(label) else -1.0) if image else np.nan

    def _stated(self) -> int | None:
        """The number of classes in `property`, if there is a sensible one."""
        path = self.path.with_name("property")
        try:
            with path.open("rb") as file:
                first = file.read(1000).split(b",")[0].strip()
        except OSError:
            return None
        is_number = first.isdigit() and len(first) < 10
        return int(first) if is_number and 0 < int(first) <= MAX_CLASSES else None


def _count(labels: NDArray[np.float64]) -> int:
    whole = labels[(labels >= 0) & (labels < MAX_CLASSES) & (labels == np.floor(labels))]
    return 1 + int(whole.max(initial=0))
