"""Checks every record of a data set, and its files: what training would stop at, or learn wrongly.

A single wrong bit inside of a JPEG's data can give another picture without any sign: nothing but a
checksum finds that.
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from facescale.data.dataset import Dataset, open_dataset
from facescale.data.found import Found, found_in
from facescale.data.images import IMAGE_SIZE
from facescale.data.outer import find_records
from facescale.data.recordfile import RecordFile, read_index
from facescale.data.recordio import RecordIO
from facescale.datasets.examine import MEANINGS, NO_FLAW, NO_IMAGE, Flaw
from facescale.datasets.frames import Frames, Salvaged, find_frames
from facescale.datasets.names import names_of
from facescale.datasets.subset import Subset, Watch, kept
from facescale.datasets.walk import MAX_REASONS, Walked, default_threads, walk_
from facescale.evaluation.streaming import unwatched


@dataclass
class Report:
    """What a check found.

    Attributes:
        dataset: What was checked; `Salvaged` where it cannot be opened for training.
        walked: Of every record.
        allowed: Flaws that are counted, and do not make a record bad.
        files: What is wrong with the files as a whole, a line each.
        frames: Of a `.rec` file.
        seconds: That the walk over the records took.
    """

    dataset: Dataset
    walked: Walked
    allowed: Flaw = NO_FLAW
    files: list[str] = field(default_factory=list)
    frames: Frames | None = None
    seconds: float = 0.0

    @property
    def bad(self) -> NDArray[np.int64]:
        """Indices of the records with a flaw that is not allowed."""
        mask = ~np.uint16(int(self.allowed))
        return np.flatnonzero(self.walked.flaws & mask)

    @property
    def is_clean(self) -> bool:
        """Whether nothing is wrong."""
        return not self.files and not len(self.bad)

    def records_with(self, flaw: Flaw) -> NDArray[np.int64]:
        """Indices of the records that have a flaw."""
        return np.flatnonzero(self.walked.flaws & np.uint16(int(flaw)))

    def reason(self, index: int) -> str:
        """What is wrong with a record: in words, or where there are too many by its kinds."""
        kinds = [MEANINGS[flaw] for flaw in Flaw if self.walked.flaws[index] & int(flaw)]
        return self.walked.reasons.get(index) or f"one of the {', '.join(kinds)}"

    def as_values(self, shown: int) -> dict[str, Any]:
        """Plain values for programs; up to `shown` records of each flaw."""
        rate = len(self.dataset) / self.seconds if self.seconds else 0.0
        lost = self.frames.lost if self.frames is not None else []
        return {
            "images": len(self.dataset),
            "classes": self.dataset.num_classes,
            "bytes": self.walked.num_bytes,
            "seconds": round(self.seconds, 3),
            "images_per_s": round(rate, 1),
            "files": self.files,
            "lost": [one._asdict() for one in lost],
            "bad": len(self.bad),
            "flaws": {
                flaw.name.lower(): {
                    "count": len(records),
                    "allowed": bool(flaw & self.allowed),
                    "records": [self._record(index) for index in records[:shown].tolist()],
                }
                for flaw in Flaw
                if flaw.name is not None and len(records := self.records_with(flaw))
            },
        }

    def _record(self, index: int) -> dict[str, Any]:
        label = int(self.walked.labels[index])
        return {
            "index": index,
            "where": self.dataset.describe(index),
            "label": None if label < 0 else label,
            "reason": self.reason(index),
        }


def check(
    source: str | Path,
    *,
    size: tuple[int, int] = (IMAGE_SIZE, IMAGE_SIZE),
    allowed: Flaw = NO_FLAW,
    num_threads: int | None = None,
    watch: Watch = unwatched,
) -> Report:
    """Decode every record of a data set; a `.rec` that cannot be opened is searched for records.

    Args:
        source: As `open_dataset` takes it.
        size: Width and height that images should have.
        allowed: Flaws that are counted, and are not wrong in this set.
        num_threads: That decode; as many as there are cores when not given.
        watch: Passes on the ranges of records that are done, to show how far it is.

    Raises:
        FileNotFoundError: Nothing lies there.
        ValueError: It is no data set, or nothing of it is left.
        OSError: The system cannot read it.
    """
    dataset, files = _open(source)
    frames = None
    if isinstance(dataset, Salvaged):
        frames = dataset.frames
        files += [f"{dataset.path.name} {one}" for one in frames.lost]
    elif isinstance(dataset, RecordIO):
        frames = find_frames(RecordFile(dataset.path))
        files += _compare_with_index(dataset.path, frames)
    if frames is not None and frames.num_lost > len(frames.lost):
        files.append(f"{frames.num_lost - len(frames.lost):,} more ranges without whole records")
    began = time.perf_counter()
    threads, walked = num_threads or default_threads(), Walked.of(len(dataset))
    for _ in watch(walk_(walked, dataset, threads, size), len(dataset)):
        pass
    mark_copies_(walked, dataset)
    return Report(dataset, walked, allowed, files, frames, time.perf_counter() - began)


def _open(source: str | Path) -> tuple[Dataset, list[str]]:
    try:
        return open_dataset(source), []
    except ValueError as error:
        records = find_records(Path(source)) if Path(source).exists() else None
        if records is None:
            raise
        return Salvaged(records), [f"cannot be opened for training: {error}"]


def _compare_with_index(path: Path, frames: Frames) -> list[str]:
    """What the file and its index do not agree on, and the lost ranges with their records."""
    index_path = path.with_suffix(".idx")
    if not index_path.exists():  # it could not be written
        return [f"{path.name} {one}" for one in frames.lost]
    keys, offsets = read_index(index_path)
    by_offset = np.argsort(offsets, kind="stable")
    places, numbers = offsets[by_offset], np.asarray(keys)[by_offset]
    told = []
    for one in frames.lost:
        first, stop = np.searchsorted(places, (one.start, one.stop))
        named = numbers[first:stop]
        text = f"{path.name} {one}"
        if len(named) == 1:
            text += f" (record {named[0]})"
        elif len(named):
            text += f" ({len(named):,} records, {named.min()} to {named.max()})"
        told.append(text)
    missing = frames.offsets[~np.isin(frames.offsets, places, kind="sort")]
    if len(missing):
        told.append(
            f"{index_path.name} lacks {len(missing):,} records of {path.name}, the first one at "
            f"byte {missing[0]:,}; move it aside to have it rebuilt"
        )
    return told


def mark_copies_(walked: Walked, dataset: Dataset) -> None:
    """Flag images that occur more than once, by the digests of their files.

    Of copies under one identity all but the first are flagged; under several identities all are,
    since nothing tells whose face it is. Images without a valid label are no copies. Digests have
    64 bits: in a set of 50 million images two different ones are taken for copies with a
    probability of 7e-5.
    """
    has_image = (walked.flaws & np.uint16(int(NO_IMAGE))) == 0
    readable = np.flatnonzero(has_image & (walked.labels >= 0))
    if len(readable) < 2:
        return
    # within a group of copies by label, and then by index
    order = readable[np.lexsort((walked.labels[readable], walked.digests[readable]))]
    digests, labels = walked.digests[order], walked.labels[order]
    begins = np.flatnonzero(np.append(True, digests[1:] != digests[:-1]))
    ends = np.append(begins[1:], len(order)) - 1
    group = np.repeat(np.arange(len(begins)), ends - begins + 1)
    conflict = (labels[begins] != labels[ends])[group]
    copy = ~conflict
    copy[begins] = False
    walked.flaws[order[conflict]] |= np.uint16(int(Flaw.CONFLICT))
    walked.flaws[order[copy]] |= np.uint16(int(Flaw.DUPLICATE))
    for place in _first(copy):
        original = dataset.describe(int(order[begins[group[place]]]))
        walked.tell(int(order[place]), int(Flaw.DUPLICATE), f"the same image as {original}")
    for place in _first(conflict):
        ends_of = (int(begins[group[place]]), int(ends[group[place]]))
        other = next(one for one in ends_of if labels[one] != labels[place])
        reason = (
            f"of label {labels[place]}, and the same image as "
            f"{dataset.describe(int(order[other]))} of label {labels[other]}"
        )
        walked.tell(int(order[place]), int(Flaw.CONFLICT), reason)


def _first(marked: NDArray[np.bool_]) -> list[int]:
    some: list[int] = np.flatnonzero(marked)[:MAX_REASONS].tolist()
    return some


def skip_lines(report: Report) -> Iterable[tuple[int, str]]:
    """The bad records with what is wrong with them, for a list that training leaves out.

    Raises:
        ValueError: The set cannot be opened for training, so no list can help it.
    """
    if isinstance(report.dataset, Salvaged):
        raise ValueError(
            f"{report.dataset.path} cannot be opened for training, so a skip list does not help; "
            "write a clean copy with --repair"
        )
    for index in report.bad.tolist():
        yield index, f"{report.dataset.describe(index)}: {report.reason(index)}"


def found_by(report: Report) -> Found:
    """Who is in the data set that was checked."""
    return found_in(report.dataset)


def good_records(report: Report, renumber: bool = False) -> Subset:
    """The records that are not bad, for a clean copy.

    Args:
        report: Of a check.
        renumber: Close the gaps of people without images. Otherwise every label stays.
    """
    is_good = report.walked.labels >= 0
    is_good[report.bad] = False
    names = names_of(report.dataset)
    return kept(report.dataset, is_good, report.walked.labels, names, renumber)
