"""What is written is read again, and is what InsightFace's own tools write."""

import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from facescale.data.recordfile import RecordFile, read_index
from facescale.data.recordio import RecordIO
from facescale.datasets.recordio import write_recordio
from records import file_of
from shared_data import shared_data

MAGIC = bytes.fromhex("0a23d7ce")  # as the bytes lie in the file

words = st.lists(st.one_of(st.just(MAGIC), st.binary(max_size=6)), max_size=8).map(b"".join)


def test_what_we_write_is_what_the_set_has_byte_by_byte(tmp_path: Path) -> None:
    folder = shared_data("cfp324")
    faces = RecordIO(folder)
    write_recordio(tmp_path, (faces.read(index) for index in range(len(faces))), 324)
    for name in ("train.rec", "train.idx", "property"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


@settings(deadline=None, max_examples=30)
@given(
    samples=st.lists(st.tuples(words, st.integers(0, 9)), min_size=1, max_size=12),
    extra_classes=st.integers(0, 3),
)
def test_any_set_comes_back(
    samples: list[tuple[bytes, int]], extra_classes: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("set")
    samples = sorted(((b"x" + image, label) for image, label in samples), key=lambda s: s[1])
    num_classes = samples[-1][1] + 1 + extra_classes
    write_recordio(folder, samples, num_classes)
    faces = RecordIO(folder)
    assert faces.num_classes == num_classes
    assert [tuple(faces.read(index)) for index in range(len(faces))] == samples


def test_identity_records_say_where_the_images_of_each_person_are(tmp_path: Path) -> None:
    samples = [(file_of(str(number)), label) for number, label in enumerate((0, 0, 2, 2, 2))]
    write_recordio(tmp_path, samples, 3)
    _, offsets = read_index(tmp_path / "train.idx")
    records = RecordFile(tmp_path / "train.rec")
    ranges = [struct.unpack("<2f", records.read(int(offsets[key]))[24:]) for key in (0, 6, 7, 8)]
    assert ranges == [(6, 9), (1, 3), (3, 3), (3, 6)]


def test_the_writer_refuses_labels_that_do_not_fit(tmp_path: Path) -> None:
    for label in (3, -1):
        with pytest.raises(ValueError, match=f"label {label}, but num_classes is 3"):
            write_recordio(tmp_path, [(b"x", label)], 3)
    with pytest.raises(ValueError, match="num_classes must be 1 to 16777216, got 16777217"):
        write_recordio(tmp_path, [], 2**24 + 1)
