"""Writes a training set in MXNet's RecordIO; the layout is that of `data.recordio`."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from facescale.data.images import IMAGE_SIZE, Encoded, to_file
from facescale.data.recordfile import write_index, write_record
from facescale.data.recordio import HEADER, LABEL, MAX_CLASSES


def write_recordio(
    folder: str | Path, samples: Iterable[tuple[Encoded, int]], num_classes: int
) -> None:
    """Write `train.rec`, `train.idx` and `property` in the layout of InsightFace.

    Args:
        folder: Where; made if need be.
        samples: Images and labels, sorted by label. Pixels are stored as PNG.
        num_classes: How many people; every label is below.

    Raises:
        ValueError: A label is not, or is smaller than the one before, or there are more classes
            than float32 labels can tell apart.
    """
    if not 1 <= num_classes <= MAX_CLASSES:
        raise ValueError(f"num_classes must be 1 to {MAX_CLASSES}, got {num_classes}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    images_per_class = np.zeros(num_classes, np.int64)
    offsets = [0]
    last_label = 0
    with (folder / "train.rec").open("wb") as file:
        write_record(file, _pack_range(0, 0, 0))  # room for the real one, of the same length
        for key, (encoded, label) in enumerate(samples, 1):
            if not last_label <= label < num_classes:
                raise ValueError(
                    f"sample {key - 1}: label {label} after {last_label} with num_classes "
                    f"{num_classes}; sort the samples by label, and count the classes again"
                )
            offsets.append(file.tell())
            write_record(file, HEADER.pack(0, label, key, 0) + to_file(encoded))
            images_per_class[label] += 1
            last_label = label
        stops = 1 + images_per_class.cumsum()
        first_identity = len(offsets)
        for label, stop in enumerate(stops.tolist()):
            offsets.append(file.tell())
            start = stop - images_per_class[label]
            write_record(file, _pack_range(first_identity + label, start, stop))
        file.seek(0)
        write_record(file, _pack_range(0, first_identity, len(offsets)))
    write_index(folder / "train.idx", offsets)
    (folder / "property").write_text(f"{num_classes},{IMAGE_SIZE},{IMAGE_SIZE}\n")


def _pack_range(key: int, start: int, stop: int) -> bytes:
    """A record without image whose labels are the range of records [start, stop)."""
    return HEADER.pack(2, 0.0, key, 0) + LABEL.pack(start) + LABEL.pack(stop)
