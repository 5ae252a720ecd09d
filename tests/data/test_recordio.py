import io
import multiprocessing
import os
import shutil
import struct
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from facescale.data import recordfile, recordio
from facescale.data.dataset import open_dataset
from facescale.data.images import decode
from facescale.data.recordfile import RecordFile, read_index, write_record
from facescale.data.recordio import RecordIO
from facescale.data.unreadable import UnreadableRecord
from facescale.datasets.recordio import write_recordio
from records import file_of, im2rec_layout
from shared_data import shared_data

MAGIC = bytes.fromhex("0a23d7ce")  # as the bytes lie in the file


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """Three people with 2, 0 and 3 images: records 1 to 5, identities 6 to 8."""
    samples = [(file_of(str(number)), label) for number, label in enumerate((0, 0, 2, 2, 2))]
    write_recordio(tmp_path, samples, 3)
    return tmp_path


def test_the_layout_of_insightface_is_read() -> None:
    faces = open_dataset(shared_data("cfp324"))
    labels = [faces.read(index).label for index in range(len(faces))]
    assert (len(faces), faces.num_classes) == (4536, 324)
    assert labels == np.repeat(np.arange(324), 14).tolist()
    assert faces.describe(16).endswith("cfp324/train.rec record 17")
    for index in (0, 4535):
        encoded = faces.read(index).encoded
        assert isinstance(encoded, bytes)
        np.testing.assert_array_equal(decode(encoded), np.asarray(Image.open(io.BytesIO(encoded))))


def test_what_mxnet_wrote_is_read_as_oneflow_has_it() -> None:
    faces = RecordIO(shared_data("golden/mxnet_rec/train.rec"))
    folder = shared_data("golden/oneflow_ofrecord")
    same_images = b"".join(path.read_bytes() for path in sorted(folder.iterdir()))
    tails = {5: b"\0\0" + MAGIC + b"tail", 17: b"\0\0" + MAGIC + b"tail" + MAGIC}
    assert (len(faces), faces.num_classes) == (60, 12)
    for index in range(60):
        encoded, label = faces.read(index)
        assert isinstance(encoded, bytes)
        assert label == index % 12
        assert encoded.endswith(tail := tails.get(index, b""))
        assert encoded.removesuffix(tail) in same_images
        assert decode(encoded).shape == (112, 112, 3)


@pytest.mark.parametrize("name", ["cfp324", "golden/mxnet_rec"])
def test_a_missing_index_and_property_are_made_good(name: str, tmp_path: Path) -> None:
    whole = RecordIO(shared_data(name))
    shutil.copy(whole.path, tmp_path)
    for _ in range(2):  # by scanning, then by the index that it left
        faces = RecordIO(tmp_path)
        assert faces.num_classes == whole.num_classes
        assert len(faces) == len(whole)
        assert all(faces.read(index) == whole.read(index) for index in range(len(whole)))
    assert (tmp_path / "train.idx").read_bytes() == whole.path.with_suffix(".idx").read_bytes()


def test_an_index_that_cannot_be_saved_is_used_all_the_same(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError("read-only")

    monkeypatch.setattr(recordio, "write_index", refuse)
    (small / "train.idx").unlink()
    assert len(RecordIO(small)) == 5
    assert not (small / "train.idx").exists()


words = st.lists(st.one_of(st.just(MAGIC), st.binary(max_size=6)), max_size=8).map(b"".join)


@settings(deadline=None)
@given(payloads=st.lists(words, min_size=1, max_size=6))
def test_any_payload_comes_back(
    payloads: list[bytes], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("payloads") / "any.rec"
    with path.open("wb") as file:
        for payload in payloads:
            write_record(file, payload)
    records = RecordFile(path)
    assert [records.read(int(offset)) for offset in records.scan()] == payloads
    # Whoever looks for the magic number at multiples of 4 finds beginnings of parts only.
    found = np.flatnonzero(np.frombuffer(path.read_bytes(), "<u4") == 0xCED7230A)
    begins = sum(1 + sum(p[i : i + 4] == MAGIC for i in range(0, len(p), 4)) for p in payloads)
    assert len(found) == begins


def test_the_layout_of_im2rec_is_read_in_the_order_of_its_keys(tmp_path: Path) -> None:
    faces = RecordIO(im2rec_layout(tmp_path, [3, 1, 4], keys=[7, 5, 6]))
    assert faces.num_classes == 5  # no property file: the largest label
    truth = [(file_of("1"), 1), (file_of("2"), 4), (file_of("0"), 3)]
    assert [faces.read(index) for index in range(3)] == truth
    assert [faces.describe(index).split()[-1] for index in range(3)] == ["5", "6", "7"]


def test_images_left_out_of_the_index_are_left_out(small: Path) -> None:
    lines = (small / "train.idx").read_text().splitlines(keepends=True)
    (small / "train.idx").write_text("".join(lines[:2] + lines[4:]))
    faces = RecordIO(small)
    assert [faces.read(index).encoded for index in range(3)] == [file_of(n) for n in "034"]
    assert faces.describe(1).endswith("record 4")


def test_the_border_beyond_what_float32_can_state_is_found(small: Path) -> None:
    # A header states 2**24 + 1 as 2**24: here the keys are as if so many images came before.
    lines = (small / "train.idx").read_text().splitlines()
    keys = [0, *range(2**24 - 4, 2**24 + 4)]
    text = "".join(f"{key}\t{line.split()[1]}\n" for key, line in zip(keys, lines, strict=True))
    (small / "train.idx").write_text(text)
    with (small / "train.rec").open("r+b") as file:
        file.seek(8 + 24)
        file.write(struct.pack("<2f", 2**24 + 1, 2**24 + 4))
    faces = RecordIO(small)
    assert (len(faces), faces.num_classes) == (5, 3)


def test_the_index_of_many_records_is_parsed_in_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recordfile, "_CHUNK", 100)
    offsets = np.arange(1000) * 7**8
    recordfile.write_index(tmp_path / "idx", offsets)
    keys, found = read_index(tmp_path / "idx")
    assert keys == range(1000)
    np.testing.assert_array_equal(found, offsets)
    lines = (tmp_path / "idx").read_text().splitlines()
    (tmp_path / "idx").write_text("\n".join(lines[:500] + lines[:499:-1]))
    keys, found = read_index(tmp_path / "idx")
    np.testing.assert_array_equal(keys, np.arange(1000))
    np.testing.assert_array_equal(found, offsets)


def test_labels_are_read_from_the_heads_of_large_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_recordio(tmp_path, [(bytes([1]) * 100_000, label) for label in range(5)], 5)
    faces = RecordIO(tmp_path)
    read, asked = os.pread, list[int]()

    def count(descriptor: int, size: int, offset: int) -> bytes:
        asked.append(size)
        return read(descriptor, size, offset)

    monkeypatch.setattr(os, "pread", count)
    assert faces.labels().tolist() == [0, 1, 2, 3, 4]
    assert sum(asked) <= 5 * 8192


def damage(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def test_a_damaged_record_is_named(small: Path) -> None:
    faces = RecordIO(small)
    offset = int(read_index(small / "train.idx")[1][3])
    damage(faces.path, offset, b"oops")
    message = f"train.rec record 3: no record begins at byte {offset}, where "
    with pytest.raises(ValueError, match=message):
        faces.read(2)
    damage(faces.path, offset, MAGIC + struct.pack("<I", 2 << 29 | 31))  # a middle without a first
    with pytest.raises(ValueError, match=message):
        faces.read(2)
    damage(faces.path, offset, MAGIC + struct.pack("<I", 10**6))
    with pytest.raises(ValueError, match="record 3: the file ends inside the record at byte"):
        faces.read(2)
    damage(faces.path, offset, MAGIC + struct.pack("<I", 20))
    with pytest.raises(ValueError, match="record 3: a record of 20 bytes is too short"):
        faces.read(2)
    assert faces.read(3) == (file_of("3"), 2)


def test_a_truncated_file_is_refused_with_and_without_index(small: Path) -> None:
    rec = small / "train.rec"
    rec.write_bytes(rec.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"rec record 8: the file ends inside .* copy the set"):
        RecordIO(small)
    (small / "train.idx").unlink()
    with pytest.raises(ValueError, match=r"train\.rec: the file ends inside .*: copy both again"):
        RecordIO(small)
    rec.write_bytes(b"")
    with pytest.raises(ValueError, match=r"train\.rec is empty"):
        RecordIO(small)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0\t0\n1\t40\n2\t99999\n", "record 2 at byte 99999 is outside train.rec, which has"),
        ("0\t0\n1\t-8\n", "record 1 at byte -8 is outside train.rec"),
        ("0\t0\n1 and 40\n", "could not be read|not every line is a key and a byte offset"),
        ("0\t0\n1\n", "not every line is a key and a byte offset"),
        ("0\t0\n1\t40\n1\t80\n", "key 1 occurs twice"),
        ("", "no lines"),
        ("0\t0\n1\t40\n2\t80\n", "images end before record 6, but here they end before 3"),
    ],
)
def test_a_wrong_index_is_refused(small: Path, text: str, message: str) -> None:
    (small / "train.idx").write_text(text)
    with pytest.raises(ValueError, match=f"train.idx: .*({message}).*; move train.idx aside"):
        RecordIO(small)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", ["property", "train.idx", "train.idx.cache", "train.rec"])
def test_a_pipe_is_not_waited_for(small: Path, name: str) -> None:
    (small / name).unlink(missing_ok=True)
    os.mkfifo(small / name)
    if name == "train.idx.cache":  # passed over
        assert len(RecordIO(small)) > 0
    else:
        with pytest.raises(ValueError, match=f"{name} is not a (regular )?file"):
            RecordIO(small)


def test_a_file_that_shrinks_while_it_is_read_is_an_error_and_not_a_bus_error(small: Path) -> None:
    faces = RecordIO(small)
    os.truncate(faces.path, 100)
    with pytest.raises(UnreadableRecord, match=r"the file has 100 bytes and had .* when"):
        faces.read(4)
    os.truncate(faces.path, 0)
    with pytest.raises(UnreadableRecord, match="the file has 0 bytes"):
        faces.read(0)


def test_a_file_that_is_replaced_while_it_is_read_stays_what_it_was(small: Path) -> None:
    faces = RecordIO(small)
    truth = [faces.read(index) for index in range(5)]
    (small / "other").write_bytes(b"other")
    (small / "other").replace(faces.path)
    assert [faces.read(index) for index in range(5)] == truth


def test_an_error_of_the_disk_is_an_unreadable_record(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faces = RecordIO(small)

    def refuse(*_: object) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "pread", refuse)
    with pytest.raises(UnreadableRecord, match="record 3: Input/output error; copy it") as caught:
        faces.read(2)
    assert caught.value.index == 2


@pytest.mark.parametrize("damaged", [(0,), (5,), (8,), (6,), (1, 2), (0, 8), (5, 6, 7)])
def test_zeros_cost_the_records_they_cover_and_no_other(
    small: Path, damaged: tuple[int, ...]
) -> None:
    offsets = [*read_index(small / "train.idx")[1].tolist(), (small / "train.rec").stat().st_size]
    truth = [RecordIO(small).read(index) for index in range(5)]
    for record in damaged:
        damage(small / "train.rec", offsets[record], bytes(offsets[record + 1] - offsets[record]))
    faces = RecordIO(small)
    assert (len(faces), faces.num_classes) == (5, 3)
    for index in range(5):
        if index + 1 in damaged:
            with pytest.raises(UnreadableRecord, match=f"record {index + 1}: no record begins"):
                faces.read(index)
        else:
            assert faces.read(index) == truth[index]


def test_an_index_without_record_0_is_named_with_the_remedy(small: Path) -> None:
    lines = (small / "train.idx").read_text().splitlines(keepends=True)
    (small / "train.idx").write_text("".join(lines[1:]))
    with pytest.raises(ValueError, match=r"train\.idx: record 0 is missing, .*; move train"):
        RecordIO(small)
    (small / "train.idx").unlink()
    assert len(RecordIO(small)) == 5


def test_labels_with_large_gaps_are_refused_unless_property_says_so(tmp_path: Path) -> None:
    im2rec_layout(tmp_path, [3, 9_000_000])
    with pytest.raises(ValueError, match="2 people have images, but the labels go up to 9000000"):
        RecordIO(tmp_path)
    (tmp_path / "property").write_text("9000001,112,112")
    assert RecordIO(tmp_path).num_classes == 9_000_001
    (tmp_path / "property").unlink()
    im2rec_layout(tmp_path, [0, 2, float("nan"), float("inf"), -1])
    assert str(RecordIO(tmp_path).found()) == "5 images of 3 people, 1 of them without images"


def test_what_was_found_counts_empty_classes_and_tells_orders_apart(
    small: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = RecordIO(small).found()
    assert str(found) == "5 images of 3 people, 1 of them without images"
    (small / "property").write_text("7,112,112")
    assert RecordIO(small).found().num_empty == 5
    others = {found.people, RecordIO(small).found().people}
    (small / "property").write_text("2,112,112\n")
    assert RecordIO(small).found().num_empty == 1
    assert "3 images have labels beyond the 2 classes that property states" in caplog.text
    for number, labels in enumerate(((0, 0, 0, 2, 2), (0, 1, 1, 2, 2), (0, 1, 2, 2, 2))):
        folder = tmp_path / str(number)
        write_recordio(folder, [(file_of("x"), label) for label in labels], 3)
        others.add(RecordIO(folder).found().people)
    assert len(others) == 5
    images = [(file_of("y"), label) for label in (0, 0, 2, 2, 2)]
    write_recordio(tmp_path / "same", images, 3)
    assert RecordIO(tmp_path / "same").found() == found  # other images of the same people
    im2rec_layout(small, [0, 0, 2])
    (small / "property").write_text("3,112,112")
    assert RecordIO(small).found().num_empty is None  # nobody has counted
    assert RecordIO(small).found().people not in others
    real = RecordIO(shared_data("cfp324")).found()
    assert str(real) == "4,536 images of 324 people"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (MAGIC + struct.pack("<I", 2**29 - 1) + bytes(2**16), "the file ends inside"),
        (
            MAGIC + struct.pack("<I", 1 << 29) + (MAGIC + struct.pack("<I", 2 << 29)) * 2**17,
            "has more than 65536 parts",
        ),
    ],
)
def test_a_record_that_asks_for_too_much_is_refused(
    tmp_path: Path, content: bytes, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "any.rec").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        RecordFile(tmp_path / "any.rec").read(0)
    monkeypatch.setattr(recordfile, "MAX_PAYLOAD", 10_000)
    with (tmp_path / "any.rec").open("wb") as file:
        write_record(file, bytes(10_001))
    with pytest.raises(ValueError, match="the record at byte 0 has more than 10000 bytes"):
        RecordFile(tmp_path / "any.rec").read(0)


def test_a_property_may_begin_with_a_byte_order_mark(small: Path) -> None:
    (small / "property").write_bytes(b"\xef\xbb\xbf3,112,112\r\n")
    assert RecordIO(small).num_classes == 3


@pytest.mark.parametrize("text", ["", "0,112,112", "many,112,112", "\u0663,1,1"])
def test_a_wrong_property_file_is_refused(small: Path, text: str) -> None:
    (small / "property").write_text(text)
    with pytest.raises(ValueError, match=r"property begins with '.*', not with the number of"):
        RecordIO(small)


def test_names_of_others_are_counted_before_they_take_memory(small: Path) -> None:
    (small / "names.txt").write_text("ab\n" * 1_000_000)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="names 1000000 people, but the set has 3 classes"):
            RecordIO(small)
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()


def test_more_classes_than_float32_can_tell_apart_are_refused(small: Path) -> None:
    (small / "property").write_text(f"{2**24},112,112")
    assert RecordIO(small).num_classes == 2**24
    (small / "property").write_text("9" * 5000)
    with pytest.raises(ValueError, match="9 classes, but float32 labels are exact up to"):
        RecordIO(small)
    (small / "property").write_text(f"{2**24 + 1},112,112")
    with pytest.raises(ValueError, match="16777217 classes, but float32 labels are exact"):
        RecordIO(small)


def test_a_label_that_is_no_whole_number_is_refused(tmp_path: Path) -> None:
    (tmp_path / "property").write_text("3,112,112")
    faces = RecordIO(im2rec_layout(tmp_path, [0, 1.5, float("nan")]))
    for index in (1, 2):
        with pytest.raises(ValueError, match=f"record {index}: label .* is not a whole number"):
            faces.read(index)


def test_a_set_without_images_is_refused(tmp_path: Path) -> None:
    write_recordio(tmp_path, [], 2)
    with pytest.raises(ValueError, match="has no images"):
        RecordIO(tmp_path)


def test_threads_and_forked_processes_may_share_a_set(small: Path) -> None:
    faces = RecordIO(small)
    truth = [faces.read(index) for index in range(5)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(faces.read, [0, 1, 2, 3, 4] * 40)) == truth * 40
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    child = context.Process(target=lambda: answers.put([faces.read(i) for i in range(5)]))
    child.start()
    child.join(20)
    assert child.exitcode == 0
    assert answers.get() == truth
