"""Training sets in MXNet's RecordIO, read and written without MXNet.

A set is `train.rec` (the records), `train.idx` (lines "key, tab, byte offset") and `property`
("num_classes,height,width"). A record is a header, its labels, and an encoded image. In the layout
of InsightFace (`face2rec2.py`) record 0 has no image: its label is where the identity records
begin, which have no images either and follow the images. In that of `im2rec.py` all are images.
"""

import logging
import struct
from bisect import bisect_left
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from facescale.data.images import IMAGE_SIZE, Encoded, Sample, to_file
from facescale.data.indexcache import Index, IndexCache
from facescale.data.recordfile import Keys, RecordFile, read_index, write_index, write_record

_HEADER = struct.Struct("<IfQQ")  # number of labels that follow, or 0: the next; key; unused
_FLOAT = struct.Struct("<f")
_MAX_CLASSES = 2**24  # labels are float32, which has not all whole numbers beyond
_REBUILD = "delete {} to have it rebuilt, or copy the set again"

_log = logging.getLogger(__name__)


class RecordIO:
    """A training set in RecordIO, of either layout.

    Attributes:
        path: The `.rec` file.
        num_classes: As `property` has it; without one, as the identity records or labels have it.
    """

    def __init__(self, path: str | Path) -> None:
        """Open a `.rec` file, or the `train.rec` in a folder; a missing `.idx` is rebuilt.

        Raises:
            FileNotFoundError: There is no `.rec` file.
            ValueError: A file is damaged, or they do not belong together.
        """
        path = Path(path)
        self.path = path / "train.rec" if path.is_dir() else path
        self._index_path = self.path.with_suffix(".idx")
        self._file = RecordFile(self.path)
        index = self._open_index()
        self._keys, self._offsets = index.keys, index.offsets
        self._read_record(index.last)  # a copy that broke off lacks the end
        first, stop = self._find_images()
        num_identities = len(self._keys) - stop
        self._keys, self._offsets = self._keys[first:stop], self._offsets[first:stop]
        if not len(self):
            raise ValueError(f"{self.path} has no images")
        self.num_classes = (
            self._read_property() or num_identities or index.num_classes or self._count(index)
        )
        if self.num_classes > _MAX_CLASSES:
            raise ValueError(
                f"{self.path}: {self.num_classes} classes, but the float32 labels of RecordIO "
                f"tell only {_MAX_CLASSES} apart; use a folder of images per person"
            )

    def __len__(self) -> int:
        return len(self._offsets)

    def read(self, index: int) -> Sample:
        """The image file of sample `index` and its label, the first one where there are several."""
        label, image = self._read_record(index)
        if not label.is_integer():
            raise ValueError(f"{self.describe(index)}: label {label} is not a whole number")
        return Sample(image, int(label))

    def describe(self, index: int) -> str:
        """`train.rec record 17`, with the folder; the number is the key in the `.idx`."""
        return f"{self.path} record {self._keys[index]}"

    def _read_record(self, index: int) -> tuple[float, bytes]:
        try:
            payload = self._file.read(int(self._offsets[index]))
            num_labels, label, _, _ = _HEADER.unpack_from(payload)
            if num_labels:
                (label,) = _FLOAT.unpack_from(payload, _HEADER.size)
        except (ValueError, struct.error) as error:
            remedy = _REBUILD.format(self._index_path.name)
            raise ValueError(f"{self.describe(index)}: {error}; {remedy}") from error
        return label, payload[_HEADER.size + _FLOAT.size * num_labels :]

    def _open_index(self) -> Index:
        """Where all records begin: as it was kept, else from the text, else by a scan."""
        cache = IndexCache(self._index_path, self.path)
        if (kept := cache.load()) is not None:
            return kept
        if self._index_path.exists():
            keys, offsets = self._parse_index()
        else:
            keys, offsets = self._rebuild_index()
            cache = IndexCache(self._index_path, self.path)  # the text is there now, if it can be
        index = Index(keys, offsets, int(offsets.argmax()))
        cache.keep(index)
        return cache.load() or index  # what ranks share, and need not hold

    def _parse_index(self) -> tuple[Keys, NDArray[np.int64]]:
        try:
            keys, offsets = read_index(self._index_path)
            outside = np.flatnonzero((offsets < 0) | (offsets >= self._file.size))
            if len(outside):
                key, offset = keys[outside[0]], offsets[outside[0]]
                raise ValueError(
                    f"record {key} at byte {offset} is outside {self.path.name}, which has "
                    f"{self._file.size} bytes"
                )
        except ValueError as error:
            remedy = _REBUILD.format(self._index_path.name)
            raise ValueError(f"{self._index_path}: {error}; {remedy}") from error
        return keys, offsets

    def _rebuild_index(self) -> tuple[Keys, NDArray[np.int64]]:
        _log.info("%s is missing: reading through %s", self._index_path, self.path.name)
        try:
            offsets = self._file.scan()
        except ValueError as error:
            raise ValueError(f"{self.path}: {error}; copy it again") from error
        try:
            write_index(self._index_path, offsets)
        except OSError as error:
            _log.info("it cannot be saved, so every start will need it: %s", error)
        return range(len(offsets)), offsets

    def _find_images(self) -> tuple[int, int]:
        """Where the records that are images begin and end."""
        count = len(self._keys)
        stated, image = self._read_record(0)
        if image:
            return 0, count
        # What record 0 states is a float32, inexact beyond 2**24: look for the place itself.
        stop = bisect_left(
            range(count), True, 1, key=lambda record: not self._read_record(record)[1]
        )
        key = self._keys[stop] if stop < count else self._keys[-1] + 1
        if np.float32(key) != stated:
            raise ValueError(
                f"{self._index_path}: record 0 says that the images end before record "
                f"{stated:.0f}, but here they end before {key}; "
                + _REBUILD.format(self._index_path.name)
            )
        return 1, stop

    def _read_property(self) -> int | None:
        path = self.path.with_name("property")
        if not path.exists():
            return None
        first = path.read_text(errors="replace").split(",")[0].strip()
        if not first.isdecimal() or int(first) == 0:
            raise ValueError(
                f"{path} begins with {first!r}, not with the number of classes as in "
                "'324,112,112'; correct it, or delete it to have them counted"
            )
        return int(first)

    def _count(self, index: Index) -> int:
        """The classes, by the labels of all images; kept with the index."""
        _log.info("%s has no property file: reading the labels", self.path)
        num_classes = 1 + max(self.read(number).label for number in range(len(self)))
        IndexCache(self._index_path, self.path).keep(index._replace(num_classes=num_classes))
        return num_classes


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
    if not 1 <= num_classes <= _MAX_CLASSES:
        raise ValueError(f"num_classes must be 1 to {_MAX_CLASSES}, got {num_classes}")
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
            write_record(file, _HEADER.pack(0, label, key, 0) + to_file(encoded))
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
    return _HEADER.pack(2, 0.0, key, 0) + _FLOAT.pack(start) + _FLOAT.pack(stop)
