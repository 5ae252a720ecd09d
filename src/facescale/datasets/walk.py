"""Reads every record of a data set in parallel, and keeps a few bytes of each."""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from facescale.data.dataset import Dataset
from facescale.data.images import IMAGE_SIZE, Encoded, header_size
from facescale.data.unreadable import UnreadableRecord
from facescale.datasets.ahead import ahead
from facescale.datasets.examine import NO_FLAW, Examined, Flaw, examine, flaw_of

CHUNK = 256
"""Records of one task of a thread."""
MAX_REASONS = 1000
"""Records of each kind of flaw of which the reason is kept; all others are counted."""
MAX_SIZES = 10_000
"""Different sizes of images that are counted apart."""

_AHEAD = 4  # tasks for each thread, which bounds the memory


@dataclass
class Walked:
    """What a walk over n records has seen; 19 bytes for each, and bounded lists.

    Attributes:
        labels: (n,) int64; -1 where it was not read.
        digests: (n,) uint64 of the image files, 0 where one was not read or not asked for.
        flaws: (n,) uint16 of `Flaw`.
        sizes: How many images there are of each (width, height); (0, 0) where it is not known.
        reasons: What is wrong with a record, for the first ones of each kind.
        num_bytes: Of all image files.
    """

    labels: NDArray[np.int64]
    digests: NDArray[np.uint64]
    flaws: NDArray[np.uint16]
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    reasons: dict[int, str] = field(default_factory=dict)
    num_bytes: int = 0
    _told: Counter[int] = field(default_factory=Counter)

    @classmethod
    def of(cls, count: int) -> "Walked":
        """Nothing seen yet of `count` records."""
        return cls(np.full(count, -1), np.zeros(count, np.uint64), np.zeros(count, np.uint16))

    def tell(self, index: int, flaws: int, reason: str) -> None:
        """Keep a reason, unless there are enough of its kind."""
        self._told[flaws] += 1
        if self._told[flaws] <= MAX_REASONS:
            before = self.reasons.get(index)
            self.reasons[index] = reason if before is None else f"{before}; {reason}"


def default_threads() -> int:
    """As many as there are cores for this process."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def walk_(
    walked: Walked,
    dataset: Dataset,
    num_threads: int,
    size: tuple[int, int] = (IMAGE_SIZE, IMAGE_SIZE),
    decode: bool = True,
) -> Iterator[range]:
    """Read all records of `dataset` into `walked`, and yield the ranges that have come to it.

    Args:
        walked: `Walked.of(len(dataset))`.
        dataset: Whose records are read, in order.
        num_threads: That read and decode.
        size: Expected width and height.
        decode: Decode images, and take digests of their files; otherwise only their headers are
            looked at.
    """
    for start, seen in _parts(dataset, num_threads, size, decode):
        records = range(start, start + len(seen.labels))
        window = slice(records.start, records.stop)
        walked.labels[window] = seen.labels
        walked.digests[window] = seen.digests
        walked.flaws[window] = seen.flaws
        walked.num_bytes += seen.num_bytes
        for one, count in seen.sizes.items():
            known = one in walked.sizes or len(walked.sizes) < MAX_SIZES
            walked.sizes[one if known else (0, 0)] += count
        for index, reason in seen.reasons.items():
            walked.tell(index, int(walked.flaws[index]), reason)
        yield records


def _parts(
    dataset: Dataset, num_threads: int, size: tuple[int, int], decode: bool
) -> Iterator[tuple[int, Walked]]:
    """The parts in order; no more than a few are in memory."""

    def look(start: int) -> tuple[int, Walked]:
        return _look(dataset, start, min(start + CHUNK, len(dataset)), size, decode)

    return ahead(look, range(0, len(dataset), CHUNK), num_threads, _AHEAD)


def _look(
    dataset: Dataset, start: int, stop: int, size: tuple[int, int], decode: bool
) -> tuple[int, Walked]:
    """`start`, and what was seen of the records [start, stop)."""
    seen = Walked.of(stop - start)
    buffer = np.empty((size[1], size[0], 3), np.uint8)
    for index in range(start, stop):
        row = index - start
        try:
            encoded, label = dataset.read(index)
        except (ValueError, OSError) as error:
            flaw = flaw_of(error)
            reason = error.reason if isinstance(error, UnreadableRecord) else str(error)
            if "is not a whole number" in reason:
                flaw = Flaw.LABEL
            seen.flaws[row] = flaw
            seen.reasons[index] = reason
            continue
        found = examine(encoded, buffer) if decode else _header(encoded)
        flaws, reasons = found.flaws, found.reasons
        if 0 <= label < dataset.num_classes:
            seen.labels[row] = label
        else:
            flaws |= Flaw.LABEL
            reasons = (f"label {label}, but there are {dataset.num_classes} classes", *reasons)
        content = encoded if isinstance(encoded, bytes) else encoded.tobytes()
        seen.num_bytes += len(content)
        seen.sizes[found.width, found.height] += 1
        if decode:
            seen.digests[row] = int.from_bytes(blake2b(content, digest_size=8).digest(), "little")
        if flaws:
            seen.flaws[row] = flaws
            seen.reasons[index] = "; ".join(reasons)
    return start, seen


def _header(encoded: Encoded) -> Examined:
    """The size of an image by its header."""
    if not isinstance(encoded, bytes):
        return Examined(NO_FLAW, encoded.shape[1], encoded.shape[0])
    try:
        return Examined(NO_FLAW, *header_size(encoded))
    except ValueError:
        return Examined(NO_FLAW)
