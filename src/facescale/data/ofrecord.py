"""Training sets in OneFlow's OFRecord, as oneflow_face has them, read without OneFlow.

A set is a folder of `part-00000`, `part-00001`, ... A part is a sequence of records: the length as
int64, then a protobuf message `OFRecord { map<string, Feature> feature = 1; }` with the features
`encoded` (an image file) and `label`. Source: OneFlow `oneflow/core/record/record.proto`.
"""

import os
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from facescale.data.found import Found, found_by_labels
from facescale.data.images import Sample
from facescale.data.recordfile import MAX_PAYLOAD, TruncatedError
from facescale.data.sampletable import (
    NO_LABEL,
    facts_of,
    labels_in,
    read_range,
    table_of,
)
from facescale.data.sidecars import count_classes, read_names, read_property
from facescale.data.unreadable import unreadable

LENGTH = struct.Struct("<q")
_PART = re.compile(r"part-\d{1,9}")
_MAX_FEATURES = 1000
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types
_KINDS = {3: "<f8", 2: "<f4"}  # of Feature, those of a fixed width
_INTS = (4, 5)  # int32_list, int64_list


class OFRecord:
    """A training set in OFRecord; images are numbered through the parts.

    Damaged messages cost no others: such a set opens, and reading one raises `UnreadableRecord`.

    Attributes:
        path: The folder, or the one part.
        num_classes: As a file `property` beside the parts has it, else as the labels have it.
        class_names: The people by label, where there is a `names.txt`.
    """

    def __init__(self, path: str | Path) -> None:
        """Open a folder of parts, or one part. They are read once, and the places kept.

        Raises:
            ValueError: A part is cut short or no OFRecord, or no record has a label.
        """
        self.path = Path(path)
        folder = self.path if self.path.is_dir() else self.path.parent
        self._parts = parts_in(self.path)
        self._table = table_of(folder, facts_of(self._parts), lambda: _scan(self._parts))
        labels = self.labels()
        self.num_classes = read_property(folder) or count_classes(
            labels[labels >= 0], self.path, folder
        )
        self.class_names = read_names(folder, self.num_classes)

    def __len__(self) -> int:
        return len(self._table)

    def read(self, index: int) -> Sample:
        """The image file of record `index` and its label; UnreadableRecord if it is damaged."""
        part, offset, size, _ = self._table[index].item()
        try:
            found = parse(read_range(self._parts[part], offset, size))
        except (OSError, ValueError) as error:
            raise unreadable(self, index, error) from error
        return Sample(found.encoded, found.label)

    def describe(self, index: int) -> str:
        """`part-00003 byte 1234`, with the folder: where the length of the record stands."""
        part, offset, _, _ = self._table[index].item()
        return f"{self._parts[part]} byte {offset - LENGTH.size}"

    def labels(self) -> NDArray[np.int64]:
        """The label of every image, (n,); -1 for a damaged record."""
        return labels_in(self._table)

    def found(self) -> Found:
        """The people by their names, or by the number of images of each one."""
        return found_by_labels(self.labels(), self.num_classes, self.class_names)


def is_ofrecord(source: str) -> bool:
    """Whether a path is a part, or a folder of parts."""
    path = Path(source)
    if path.is_file():
        return _PART.fullmatch(path.name) is not None
    return path.is_dir() and any(_PART.fullmatch(entry.name) for entry in path.iterdir())


def parts_in(path: Path) -> list[Path]:
    """The parts at a path, by their numbers."""
    if path.is_file():
        return [path]
    parts = [entry for entry in path.iterdir() if _PART.fullmatch(entry.name)]
    return sorted(parts, key=lambda part: (int(part.name[5:]), part.name))


def _scan(parts: list[Path]) -> Iterator[tuple[int, int, int, int]]:
    """Every record of every part: part, where its message begins, its length, label."""
    for number, part in enumerate(parts):
        with part.open("rb") as file:
            end, offset = os.fstat(file.fileno()).st_size, 0
            while offset < end:
                head = file.read(LENGTH.size)
                size = LENGTH.unpack(head)[0] if len(head) == LENGTH.size else 1
                if not 0 < size <= MAX_PAYLOAD:
                    raise ValueError(
                        f"{part}: the record at byte {offset} states a length of {size} bytes; "
                        "copy the part again"
                    )
                message = file.read(size)
                if len(message) != size or len(head) != LENGTH.size:
                    raise TruncatedError(
                        f"{part}: the file ends inside the record at byte {offset}; copy it again"
                    )
                yield number, offset + LENGTH.size, size, _label_in(message)
                offset += LENGTH.size + size


def _label_in(message: bytes) -> int:
    try:
        label = parse(message).label
    except ValueError:
        return NO_LABEL
    return label if label < NO_LABEL else NO_LABEL


class Features(NamedTuple):
    """What a record holds for training."""

    encoded: bytes
    label: int


def parse(message: bytes) -> Features:
    """The image and the label of a record.

    Raises:
        ValueError: The message is damaged, or lacks `encoded` or `label`.
    """
    features = {}
    for number, entry in _fields(message, 0, len(message)):
        if number != 1 or isinstance(entry, int):
            continue
        key, value = b"", (0, 0)
        for part, place in _fields(message, *entry):
            if isinstance(place, int):
                continue
            if part == 1:
                key = message[place[0] : place[1]]
            elif part == 2:
                value = place
        features[key] = value
    for name in (b"encoded", b"label"):
        if name not in features:
            raise ValueError(f"the record has no feature {name.decode()!r}")
    encoded = _bytes_in(message, *features[b"encoded"])
    return Features(encoded, _number_in(message, *features[b"label"]))


Place = tuple[int, int]


def _fields(message: bytes, start: int, stop: int) -> Iterator[tuple[int, int | Place]]:
    """The fields of a message: number, and its varint or where its bytes lie."""
    for _ in range(_MAX_FEATURES):
        if start == stop:
            return
        word, start = _varint(message, start, stop)
        number, kind = word >> 3, word & 7
        value: int | Place
        if kind == _VARINT:
            value, start = _varint(message, start, stop)
        else:
            size = {_FIXED64: 8, _FIXED32: 4}.get(kind, -1)
            if kind == _BYTES:
                size, start = _varint(message, start, stop)
            if not 0 <= size <= stop - start:
                raise ValueError(f"the message is damaged at byte {start} of the record")
            value, start = (start, start + size), start + size
        yield number, value
    raise ValueError(f"the record has more than {_MAX_FEATURES} values")


def _varint(message: bytes, start: int, stop: int) -> tuple[int, int]:
    """A number of at most 64 bits, and where the next thing begins."""
    value = 0
    for shift in range(0, 70, 7):
        if start >= stop:
            break
        byte = message[start]
        start += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & (2**64 - 1), start
    raise ValueError(f"the message is damaged at byte {start} of the record")


def _bytes_in(message: bytes, start: int, stop: int) -> bytes:
    """The first value of a feature's bytes_list."""
    for kind, values in _fields(message, start, stop):
        if kind == 1 and not isinstance(values, int):
            for number, value in _fields(message, *values):
                if number == 1 and not isinstance(value, int):
                    return message[value[0] : value[1]]
    raise ValueError("the feature 'encoded' has no bytes")


def _number_in(message: bytes, start: int, stop: int) -> int:
    """The first value of a feature's list of numbers, packed or not; a label, from 0 on."""
    for kind, values in _fields(message, start, stop):
        if isinstance(values, int):
            continue
        for number, place in _fields(message, *values):
            if number != 1:
                continue
            value: float = place if isinstance(place, int) else -1
            if not isinstance(place, int) and kind in _INTS:
                value, _ = _varint(message, *place)
            elif not isinstance(place, int) and kind in _KINDS:
                width = np.dtype(_KINDS[kind]).itemsize
                if place[1] - place[0] >= width:
                    value = float(np.frombuffer(message, _KINDS[kind], 1, place[0])[0])
            if not (0 <= value < 2**32 and value == int(value)):
                raise ValueError(f"label {value} is no whole number from 0 to {2**32 - 1}")
            return int(value)
    raise ValueError("the feature 'label' has no number")
