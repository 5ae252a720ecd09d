"""Training sets in MXNet's RecordIO, read without MXNet.

A set is `train.rec` (the records), `train.idx` (lines "key, tab, byte offset") and `property`
("num_classes,height,width"). A record is a header, its labels, and an encoded image. In the layout
of InsightFace (`face2rec2.py`) record 0 has no image: its label is where the identity records
begin, which have no images either and follow the images. In that of `im2rec.py` all are images.
Two files of ours may lie beside them: `names.txt` and, for more than 2**24 people, `train.labels`.
"""

import logging
import struct
from bisect import bisect_left
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from facescale.data.found import Found, digest, people_digest, warn_beyond
from facescale.data.images import Sample
from facescale.data.indexcache import Index, IndexCache
from facescale.data.recordfile import Keys, RecordFile, TruncatedError, read_index, write_index
from facescale.data.sidecars import count_classes, read_labels, read_names, read_property
from facescale.data.unreadable import UnreadableRecord, unreadable

HEADER = struct.Struct("<IfQQ")
"""Number of labels that follow, or 0 where the next is the only one; label; key; unused."""
LABEL = struct.Struct("<f")
MAX_CLASSES = 2**24
"""Labels are float32, which has not all whole numbers beyond."""

_HEAD = 4096  # bytes that show whether a record has an image
_MAX_DAMAGE = 10_000  # records in a row, between two that show where the images end
_IDENTITY = np.dtype(
    [("magic", "<u4"), ("size", "<u4"), ("count", "<u4"), ("rest", "V20"), ("range", "<f4", 2)]
)
_REBUILD = "move {} aside to have it rebuilt, or copy the set again"

_log = logging.getLogger(__name__)


class RecordIO:
    """A training set in RecordIO, of either layout.

    Damaged records cost no others: such a set opens, and reading one raises `UnreadableRecord`.

    Attributes:
        path: The `.rec` file.
        num_classes: As `property` has it; without one, as the identity records or labels have it.
        class_names: The people by label, where there is a `names.txt`.
    """

    def __init__(self, path: str | Path) -> None:
        """Open a `.rec` file, or the `train.rec` in a folder; a missing `.idx` is rebuilt.

        Raises:
            FileNotFoundError: There is no `.rec` file.
            ValueError: It is cut short, the index is wrong, or they do not belong together; or
                nothing but the labels states the number of classes, and ten times as many
                classes as people have images.
        """
        path = Path(path)
        self.path = path / "train.rec" if path.is_dir() else path
        self._index_path = self.path.with_suffix(".idx")
        self._file = RecordFile(self.path)
        index = self._open_index()
        self._keys, self._offsets = index.keys, index.offsets
        self._check_end(index.last)
        first, stop = self._find_images()
        self._identities = self._offsets[stop:]
        self._keys, self._offsets = self._keys[first:stop], self._offsets[first:stop]
        if not len(self):
            raise ValueError(f"{self.path} has no images")
        self._num_empty: int | None = None
        self._exact = read_labels(self.path.with_suffix(".labels"), len(self))
        self.num_classes = (
            read_property(self.path.parent)
            or len(self._identities)
            or index.num_classes
            or self._count(index)
        )
        if self.num_classes > MAX_CLASSES and self._exact is None:
            raise ValueError(
                f"{self.path}: {self.num_classes} classes, but float32 labels are exact up to "
                f"{MAX_CLASSES}; pack the images anew with `facescale data pack --labels exact`"
            )
        self.class_names = read_names(self.path.parent, self.num_classes)

    def __len__(self) -> int:
        return len(self._offsets)

    def read(self, index: int) -> Sample:
        """The image file of sample `index` and its label, the first one where there are several.

        Raises:
            UnreadableRecord: It is damaged, or the file cannot be read.
        """
        label, image = self._read_record(index)
        if not label.is_integer():
            reason = f"label {label} is not a whole number"
            raise UnreadableRecord(self.describe(index), reason, index)
        if self._exact is None:
            return Sample(image, int(label))
        exact = int(self._exact[index])
        if np.float32(exact) != label:
            reason = f"label {label:.0f}, but {exact} in {self.path.with_suffix('.labels').name}"
            raise UnreadableRecord(self.describe(index), reason, index)
        return Sample(image, exact)

    def describe(self, index: int) -> str:
        """`train.rec record 17`, with the folder; the number is the key in the `.idx`."""
        return f"{self.path} record {self._keys[index]}"

    def labels(self) -> NDArray[np.int64]:
        """The label of every image, (n,), from the heads of the records; -1 where it is damaged."""
        if self._exact is not None:
            return self._exact.astype(np.int64)
        every = np.fromiter(((self._look(i) or [-1])[0] for i in range(len(self))), np.float64)
        labels = np.where(np.abs(every) < 2**53, every, -1).astype(np.int64)
        return np.where(labels == every, labels.clip(-1), -1)

    def found(self) -> Found:
        """The people by their names, or by the number of images that each one has.

        The identity records tell the numbers; without them the digest is of where the images lie.
        """
        counts = self._images_per_class()
        num_empty = self._num_empty
        if counts is not None:
            num_empty = self.num_classes - int(np.count_nonzero(counts[: self.num_classes]))
            warn_beyond(int(counts[self.num_classes :].sum()), self.num_classes)
        if counts is None and self.class_names is None:
            people = digest([b"%d" % self.num_classes, np.ascontiguousarray(self._offsets)])
        else:
            people = people_digest(self.num_classes, counts, self.class_names)
        return Found(len(self), self.num_classes, num_empty, people)

    def _images_per_class(self) -> NDArray[np.int64] | None:
        """None without identity records, or where float32 cannot state their ranges."""
        if self._exact is not None:
            return np.bincount(self._exact[self._exact < self.num_classes])
        begins, size = self._identities, _IDENTITY.itemsize
        if not len(begins) or self._keys[-1] >= 2**24 or (np.diff(begins) != size).any():
            return None
        try:
            block = self._file.slice(int(begins[0]), int(begins[-1]) + size)
        except (ValueError, OSError):
            return None
        rows = np.frombuffer(block, _IDENTITY)
        counts: NDArray[np.float32] = rows["range"][:, 1] - rows["range"][:, 0]
        is_plausible = (rows["magic"] == rows["magic"][0]) & (rows["count"] == 2) & (counts >= 0)
        return counts.astype(np.int64) if is_plausible.all() and counts.max() < 2**24 else None

    def _read_record(self, index: int) -> tuple[float, bytes]:
        try:
            return split_record(self._file.read(int(self._offsets[index])))
        except (OSError, ValueError) as error:
            raise unreadable(self, index, error) from error

    def _look(self, index: int) -> tuple[float, bool] | None:
        """The label of a record and whether it has an image; None if it is damaged."""
        try:
            label, image = split_record(self._file.read(int(self._offsets[index]), _HEAD))
            return label, bool(image)
        except (ValueError, OSError):
            return None

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
        return index

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
            raise ValueError(
                f"{self.path}: {error}; without {self._index_path.name} nothing behind a damaged "
                "record is found: copy both again"
            ) from error
        try:
            write_index(self._index_path, offsets)
        except OSError as error:
            _log.info("it cannot be saved, so every start will need it: %s", error)
        return range(len(offsets)), offsets

    def _check_end(self, last: int) -> None:
        """A copy that broke off lacks the end; a damaged end is that record's matter alone."""
        try:
            self._file.read(int(self._offsets[last]))
        except TruncatedError as error:
            raise ValueError(f"{self.describe(last)}: {error}; copy the set again") from error
        except (ValueError, OSError) as error:
            _log.warning("%s: %s", self.describe(last), error)

    def _find_images(self) -> tuple[int, int]:
        """Where the records that are images begin and end."""
        count = len(self._keys)
        head, tail = self._look(0), self._look(count - 1)
        if head is not None and head[1]:
            if tail is not None and not tail[1]:
                raise ValueError(
                    f"{self._index_path}: record 0 is missing, which says where the images end; "
                    + _REBUILD.format(self._index_path.name)
                )
            return 0, count
        if head is None and tail is not None and tail[1]:  # in the layout of im2rec.py
            return 0, count
        # What record 0 states is a float32, inexact beyond 2**24: look for the place itself.
        stop = bisect_left(range(count), True, 1, key=self._is_behind_the_images)
        return 1, stop if head is None else self._check_stop(stop, head[0])

    def _is_behind_the_images(self, record: int) -> bool:
        """Whether this record, or the next one that can be read, has no image."""
        count = len(self._keys)
        for place in range(record, min(record + _MAX_DAMAGE, count)):
            if (seen := self._look(place)) is not None:
                return not seen[1]
        if record + _MAX_DAMAGE >= count:
            return True
        raise ValueError(
            f"{self.describe(record)} and {_MAX_DAMAGE} records behind it are damaged, or "
            f"{self._index_path.name} is of another file; copy both again"
        )

    def _check_stop(self, stop: int, stated: float) -> int:
        """Where the images end, if what record 0 states agrees, or only damage lies between."""

        def key_of(place: int) -> int:
            return int(self._keys[place]) if place < len(self._keys) else int(self._keys[-1]) + 1

        if np.float32(key_of(stop)) == stated:
            return stop
        place = bisect_left(self._keys, stated) if np.isfinite(stated) else 0
        between = range(min(stop, place), max(stop, place))
        if (
            len(between) <= _MAX_DAMAGE
            and key_of(place) == stated
            and all(self._look(record) is None for record in between)
        ):
            return place
        raise ValueError(
            f"{self._index_path}: record 0 says that the images end before record "
            f"{stated:.0f}, but here they end before {key_of(stop)}; "
            + _REBUILD.format(self._index_path.name)
        )

    def _count(self, index: Index) -> int:
        """The classes, by the labels of all images; kept with the index."""
        _log.info("%s has no property file: reading the labels", self.path)
        labels = np.unique(np.append(self.labels(), -1))[1:]
        num_classes = count_classes(labels, self.path, self.path.parent)
        self._num_empty = num_classes - len(labels)
        IndexCache(self._index_path, self.path).keep(index._replace(num_classes=num_classes))
        return num_classes


def split_record(payload: bytes) -> tuple[float, bytes]:
    """The first label of a record, and its image."""
    if len(payload) < HEADER.size:
        raise ValueError(f"a record of {len(payload)} bytes is too short for its header")
    num_labels, label, _, _ = HEADER.unpack_from(payload)
    if num_labels:
        if len(payload) < HEADER.size + LABEL.size:
            raise ValueError("a record is too short for its labels")
        (label,) = LABEL.unpack_from(payload, HEADER.size)
    return label, payload[HEADER.size + LABEL.size * num_labels :]
