"""Writes training sets in MXNet's RecordIO; the layout is that of `data.recordio`.

Record 0 and the identity records at the end are those of InsightFace: keys follow the labels, and
the images of each person have consecutive keys. Where the records lie in the file follows the order
in which they were added.
"""

from collections.abc import Iterable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from facescale.data.images import IMAGE_SIZE, Encoded, to_file
from facescale.data.recordfile import write_index, write_record
from facescale.data.recordio import HEADER, LABEL, MAX_CLASSES
from facescale.data.sidecars import MAX_EXACT, write_labels, write_property
from facescale.datasets.output import ENTRIES, GrowingFile

Labels = Literal["float32", "exact"]

_ENTRY = np.dtype([("offset", "<i8"), ("label", "<u4")])
_IDENTITY = np.dtype(
    [("part", "<u4", 2), ("count", "<u4"), ("label", "<f4"), ("ids", "<u8", 2), ("range", "<f4", 2)]
)
_BLOCK = 2**16  # identities written at once


class RecordWriter:
    """Writes `train.rec`, and at the end `train.idx`, for images in any order.

    Where each record begins is kept in a file, `ENTRIES`, 12 bytes an image: `finish` may be
    repeated after the process was killed.
    """

    def __init__(
        self,
        folder: Path,
        num_classes: int,
        mark: Mapping[str, int] | None = None,
        *,
        labels: Labels = "float32",
    ) -> None:
        """Begin in `folder`, or go on from what `mark` returned.

        Args:
            folder: Where; it exists.
            num_classes: How many people; every label is below.
            mark: Where to go on.
            labels: "exact" allows more than 2**24 classes: `train.labels` then has the labels, and
                there are no identity records, whose numbers are float32 too.

        Raises:
            ValueError: There are more classes than the labels can tell apart.
        """
        most = MAX_EXACT if labels == "exact" else MAX_CLASSES
        if not 1 <= num_classes <= most:
            raise ValueError(
                f"num_classes must be 1 to {most}, got {num_classes}"
                + ("; --labels exact keeps more in a file of their own" if most < MAX_EXACT else "")
            )
        self._folder, self.num_classes = folder, num_classes
        self._exact = num_classes > MAX_CLASSES
        mark = mark or {}
        self._records = GrowingFile(folder / "train.rec", mark.get("records", 0))
        self._entries = GrowingFile(folder / ENTRIES, mark.get("entries", 0))
        if not mark:
            self._append(_pack_range(0, 0, 0))  # room for the real one, of the same length

    def add(self, image: bytes, label: int) -> None:
        """Append an image file; ValueError where its label is not below `num_classes`."""
        if not 0 <= label < self.num_classes:
            raise ValueError(f"label {label}, but num_classes is {self.num_classes}")
        entry = np.array((self._records.size, label), _ENTRY)
        key = 1 + self._entries.size // _ENTRY.itemsize
        self._append(HEADER.pack(0, label, key, 0) + image)
        self._entries.write(entry.tobytes())

    def mark(self) -> dict[str, int]:
        """Bring all to the disk, and say where it ends."""
        return {"records": self._records.sync(), "entries": self._entries.sync()}

    def finish(self) -> None:
        """Write the identity records, record 0 and the index."""
        self._entries.close()
        entries = np.fromfile(self._folder / ENTRIES, _ENTRY)
        order = entries["label"].argsort(kind="stable")
        labels, offsets = entries["label"][order], entries["offset"][order]
        first_identity = 1 + len(entries)
        begin = self._records.size
        counts = np.bincount(labels, minlength=1 if self._exact else self.num_classes)
        num_identities = 0 if self._exact else len(counts)
        if not self._exact:
            self._write_identities(counts, first_identity)
        self._records.file.seek(0)
        self._append(_pack_range(0, first_identity, first_identity + num_identities))
        self._records.sync()
        self._records.close()
        identities = begin + _IDENTITY.itemsize * np.arange(num_identities)
        write_index(self._folder / "train.idx", np.concatenate([[0], offsets, identities]))
        if self._exact:
            write_labels(self._folder / "train.labels", labels)

    def _write_identities(self, counts: NDArray[np.int64], first: int) -> None:
        """Records without images: the range [start, stop) of each person's keys."""
        stops = 1 + counts.cumsum()
        for begin in range(0, len(counts), _BLOCK):
            stop = stops[begin : begin + _BLOCK]
            rows = np.zeros(len(stop), _IDENTITY)
            rows["part"] = np.frombuffer(_record(_pack_range(0, 0, 0)), "<u4", 2)
            rows["count"], rows["ids"][:, 0] = 2, first + begin + np.arange(len(stop))
            rows["range"][:, 0], rows["range"][:, 1] = stop - counts[begin : begin + _BLOCK], stop
            self._records.write(rows.tobytes())

    def _append(self, payload: bytes) -> None:
        self._records.write(_record(payload))

    def close(self) -> None:
        """Let go of the files."""
        try:
            self._records.close()
        finally:
            self._entries.close()


def write_recordio(
    folder: str | Path, samples: Iterable[tuple[Encoded, int]], num_classes: int
) -> None:
    """Write `train.rec`, `train.idx` and `property` in the layout of InsightFace.

    Args:
        folder: Where; made if need be.
        samples: Images and labels. Pixels are stored as PNG.
        num_classes: How many people; every label is below.

    Raises:
        ValueError: A label is not, or there are more classes than float32 labels can tell apart.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    writer = RecordWriter(folder, num_classes)
    try:
        for encoded, label in samples:
            writer.add(to_file(encoded), label)
        writer.finish()
    finally:
        writer.close()
    (folder / ENTRIES).unlink()
    write_property(folder, num_classes, IMAGE_SIZE)


def _record(payload: bytes) -> bytes:
    file = BytesIO()
    write_record(file, payload)
    return file.getvalue()


def _pack_range(key: int, start: int, stop: int) -> bytes:
    """A record without image whose labels are the range of records [start, stop)."""
    return HEADER.pack(2, 0.0, key, 0) + LABEL.pack(start) + LABEL.pack(stop)
