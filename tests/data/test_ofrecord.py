"""OFRecord as OneFlow writes it, and what is wrong with it in the field."""

import struct
from pathlib import Path

import numpy as np
import pytest

from facescale.data import sampletable
from facescale.data.dataset import found_in, open_dataset
from facescale.data.images import decode
from facescale.data.ofrecord import OFRecord, parse
from facescale.data.recordio import RecordIO
from facescale.data.unreadable import UnreadableRecord
from facescale.datasets.parts import OFRecordWriter
from shared_data import shared_data


def small(folder: Path, labels: list[int], part_size: int = 2) -> Path:
    writer = OFRecordWriter(folder, {}, part_size)
    for number, label in enumerate(labels):
        writer.add(b"image %d" % number, label)
    writer.finish()
    return folder


def entry(name: bytes, feature: bytes) -> bytes:
    def field(number: int, content: bytes) -> bytes:
        return bytes([number << 3 | 2, len(content)]) + content

    return field(1, field(1, name) + field(2, feature))


IMAGE = entry(b"encoded", b"\x0a\x05\x0a\x03jpg")


def test_what_oneflow_wrote_is_read() -> None:
    faces = open_dataset(shared_data("golden/oneflow_ofrecord"))
    original = RecordIO(shared_data("cfp324"))
    images = {original.read(index).encoded for index in range(len(original))}
    assert isinstance(faces, OFRecord)
    assert (len(faces), faces.num_classes) == (60, 324)
    for index in range(60):
        encoded, label = faces.read(index)
        assert encoded in images
        assert original.read(14 * label).label == label
        assert decode(encoded).shape == (112, 112, 3)
    assert faces.describe(3).endswith("part-00000 byte 16356")
    assert str(found_in(faces)) == "60 images of 324 people, 266 of them without images"


@pytest.mark.parametrize(
    ("feature", "label"),
    [
        (b"\x22\x04\x0a\x02\xe1\x01", 225),  # int32_list, packed
        (b"\x22\x03\x08\xe1\x01", 225),  # the same, not packed
        (b"\x2a\x03\x0a\x01\x07", 7),  # int64_list
        (b"\x12\x06\x0a\x04" + struct.pack("<f", 3), 3),
        (b"\x1a\x0a\x0a\x08" + struct.pack("<d", 4), 4),
    ],
)
def test_a_label_is_read_from_any_kind_of_number(feature: bytes, label: int) -> None:
    assert parse(IMAGE + entry(b"label", feature)) == (b"jpg", label)
    assert parse(entry(b"label", feature) + IMAGE) == (b"jpg", label)


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (IMAGE, "no feature 'label'"),
        (entry(b"label", b"\x22\x03\x0a\x01\x07"), "no feature 'encoded'"),
        (IMAGE + entry(b"label", b"\x22\x00"), "'label' has no number"),
        (IMAGE + entry(b"label", b"\x12\x06\x0a\x04" + struct.pack("<f", 0.5)), "no whole number"),
        (IMAGE + entry(b"label", b"\x22\x0c\x0a\x0a" + b"\xff" * 9 + b"\x01"), "no whole number"),
        (IMAGE[:-1], "damaged"),
        (b"\xff" * 30, "damaged"),
        (entry(b"encoded", b"\x22\x03\x0a\x01\x07") * 2, "no feature 'label'"),
        (b"\x08\x01" * 2000, "more than 1000 values"),
    ],
)
def test_a_message_without_image_or_label_is_refused(message: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse(message)


def test_a_damaged_message_costs_no_other(tmp_path: Path) -> None:
    small(tmp_path, [0, 1, 2, 3])
    path = tmp_path / "part-00000"
    data = bytearray(path.read_bytes())
    data[9] = 0xFF
    path.write_bytes(data)
    faces = OFRecord(tmp_path)
    assert [faces.read(index).label for index in (1, 2, 3)] == [1, 2, 3]
    with pytest.raises(UnreadableRecord, match=r"part-00000 byte 0: the message is damaged"):
        faces.read(0)
    assert faces.labels().tolist() == [-1, 1, 2, 3]
    assert str(faces.found()) == "4 images of 4 people, 1 of them without images"


def test_a_part_that_broke_off_is_refused_with_its_byte(tmp_path: Path) -> None:
    path = small(tmp_path, [0, 1]) / "part-00000"
    whole = path.read_bytes()
    for size in (len(whole) - 1, len(whole) // 2 + 3, 5):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"part-00000: the file ends inside the record at byt"):
            OFRecord(tmp_path)
    path.write_bytes(struct.pack("<q", 2**40) + whole[8:])
    with pytest.raises(ValueError, match="byte 0 states a length of 1099511627776 bytes"):
        OFRecord(tmp_path)


def test_parts_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    small(tmp_path, list(range(24)))
    for number in range(12):
        (tmp_path / f"part-{number:05d}").rename(tmp_path / f"part-{number}")
    assert OFRecord(tmp_path).labels().tolist() == list(range(24))
    assert len(open_dataset(tmp_path / "part-3")) == 2


def test_the_table_of_samples_is_kept_until_a_part_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampletable, "WORTH_KEEPING", 1)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    small(tmp_path, [0, 1, 2])
    OFRecord(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("facescale.data.ofrecord._scan", lambda parts: pytest.fail("scanned"))
        faces = OFRecord(tmp_path)
        assert [faces.read(index).label for index in range(3)] == [0, 1, 2]
    path = tmp_path / sampletable.NAME
    kept = path.read_bytes()
    for place in range(0, len(kept), 3):  # a damaged table is made anew
        changed = bytearray(kept)
        changed[place] ^= 1
        path.write_bytes(changed)
        assert OFRecord(tmp_path).labels().tolist() == [0, 1, 2]
    small(tmp_path, [0, 1, 2, 3])
    assert OFRecord(tmp_path).labels().tolist() == [0, 1, 2, 3]
    assert np.array_equal(OFRecord(tmp_path).labels(), [0, 1, 2, 3])
