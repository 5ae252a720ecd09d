"""The binary copy of an index: used where it is of these very files, else made anew."""

import logging
import multiprocessing
import os
from pathlib import Path
from typing import Any

import pytest

from facescale.data import indexcache, recordio
from facescale.data.recordfile import RecordFile
from facescale.data.recordio import RecordIO
from facescale.datasets.recordio import write_recordio
from facescale.files import write_whole
from records import file_of, im2rec_layout

TRUTH = [(file_of(str(number)), label) for number, label in enumerate((0, 0, 2, 2, 2))]


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A set of three people whose index is kept though it is small."""
    monkeypatch.setattr(indexcache, "WORTH_KEEPING", 1)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    write_recordio(tmp_path, TRUTH, 3)
    assert samples_of(tmp_path) == TRUTH
    assert (tmp_path / "train.idx.cache").exists()
    return tmp_path


def samples_of(folder: Path) -> list[tuple[Any, ...]]:
    faces = RecordIO(folder)
    assert faces.num_classes == 3
    return [tuple(faces.read(index)) for index in range(len(faces))]


def never_parse(monkeypatch: pytest.MonkeyPatch) -> None:
    def parse(path: Path) -> None:
        raise AssertionError(f"{path} was parsed")

    monkeypatch.setattr(recordio, "read_index", parse)


def test_a_text_that_was_parsed_once_is_not_parsed_again(
    kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    never_parse(monkeypatch)
    assert samples_of(kept) == TRUTH
    assert RecordIO(kept).describe(4).endswith("record 5")
    assert sorted(path.name for path in kept.iterdir()) == [
        *("property", "train.idx", "train.idx.cache", "train.rec")
    ]


def test_a_small_set_leaves_no_cache(tmp_path: Path) -> None:
    write_recordio(tmp_path, TRUTH, 3)
    assert samples_of(tmp_path) == TRUTH
    assert not (tmp_path / "train.idx.cache").exists()


def test_keys_that_do_not_count_are_kept_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexcache, "WORTH_KEEPING", 1)
    im2rec_layout(tmp_path, [3, 1, 4], keys=[7, 5, 6])
    truth = [tuple(RecordIO(tmp_path).read(index)) for index in range(3)]
    never_parse(monkeypatch)
    faces = RecordIO(tmp_path)
    assert [tuple(faces.read(index)) for index in range(3)] == truth
    assert [faces.describe(index).split()[-1] for index in range(3)] == ["5", "6", "7"]


def test_labels_that_nobody_states_are_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexcache, "WORTH_KEEPING", 1)
    im2rec_layout(tmp_path, [3, 1, 4], keys=[7, 5, 6])
    assert RecordIO(tmp_path).num_classes == 5
    with monkeypatch.context() as later:
        never_parse(later)
        later.delattr(RecordIO, "read")
        assert RecordIO(tmp_path).num_classes == 5
    (tmp_path / "property").write_text("9,112,112\n")
    assert RecordIO(tmp_path).num_classes == 9  # who says it himself is believed
    (tmp_path / "property").unlink()
    im2rec_layout(tmp_path, [3, 1, 0, 6, 2])
    assert RecordIO(tmp_path).num_classes == 7


def swap_the_first_two(text: Path) -> None:
    """Of the first person's images, whose offsets are equally long."""
    offsets = [line.split()[1] for line in text.read_text().splitlines()]
    offsets[1], offsets[2] = offsets[2], offsets[1]
    text.write_text("".join(f"{key}\t{offset}\n" for key, offset in enumerate(offsets)))


@pytest.mark.parametrize("telling", ["time", "text"])
def test_an_index_of_other_files_is_not_used(
    kept: Path, telling: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = kept / "train.idx"
    if telling == "time":  # of a long text most bytes are in no sample
        monkeypatch.setattr(indexcache, "_BLOCK_SIZE", 0)
        assert samples_of(kept) == TRUTH
    time = text.stat().st_mtime_ns
    swap_the_first_two(text)
    os.utime(text, ns=(time, time + (telling == "time")))
    assert samples_of(kept) == [TRUTH[1], TRUTH[0], *TRUTH[2:]]


def test_an_index_of_a_set_that_was_written_again_is_not_used(kept: Path) -> None:
    write_recordio(kept, [(b"other", 1), (b"than before", 2)], 3)
    assert samples_of(kept) == [(b"other", 1), (b"than before", 2)]


@pytest.mark.parametrize("cut", [0, 1, 40, 71, 72, 100, -8, -1])
def test_a_cache_that_was_cut_is_made_anew(
    kept: Path, cut: int, caplog: pytest.LogCaptureFixture
) -> None:
    cache = kept / "train.idx.cache"
    whole = cache.read_bytes()
    cache.write_bytes(whole[:cut])
    with caplog.at_level(logging.INFO):
        assert samples_of(kept) == TRUTH
    assert cut == 0 or "train.idx.cache does not belong to these files" in caplog.text
    assert cache.read_bytes() == whole


@pytest.mark.parametrize(
    ("count", "last", "classes", "listed"),
    [(9, 9, 3, 0), (9, 10**9, 3, 0), (9, -1, 3, 0), (9, 8, -3, 0), (9, 8, 3, 2), (-1, -2, 3, 0)],
)
def test_a_cache_whose_numbers_are_wrong_is_made_anew_though_its_digests_fit(
    kept: Path, count: int, last: int, classes: int, listed: int
) -> None:
    cache = kept / "train.idx.cache"
    whole = cache.read_bytes()
    sizes = indexcache._SIZES.pack(count, last, classes, listed)
    body = whole[indexcache._START :]
    proof = indexcache._digest(sizes + indexcache._sample(memoryview(body)))
    cache.write_bytes(whole[:24] + proof + sizes + body)
    assert samples_of(kept) == TRUTH
    assert cache.read_bytes() == whole


def test_a_cache_with_any_wrong_byte_is_made_anew(kept: Path) -> None:
    cache = kept / "train.idx.cache"
    whole = cache.read_bytes()
    for place in range(len(whole)):
        cache.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert samples_of(kept) == TRUTH
        assert cache.read_bytes() == whole


def test_a_folder_that_cannot_be_written_has_its_cache_at_home(
    kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (kept / "train.idx.cache").unlink()
    (kept / "train.idx").unlink()

    def refuse(path: Path, *rest: Any) -> None:
        if path.parent == kept:
            raise PermissionError(f"{path} is read-only")
        write_whole(path, *rest)

    monkeypatch.setattr(indexcache, "write_whole", refuse)
    monkeypatch.setattr(recordio, "write_index", refuse)
    assert samples_of(kept) == TRUTH
    assert len(list((kept / "home" / "facescale").iterdir())) == 1
    monkeypatch.delattr(RecordFile, "scan")  # nor is a set without text read through again
    assert samples_of(kept) == TRUTH


def test_a_set_opens_where_nothing_can_be_written(
    kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, *_: Any) -> None:
        raise OSError(28, "No space left on device")

    (kept / "train.idx.cache").unlink()
    monkeypatch.setattr(indexcache, "write_whole", refuse)
    assert samples_of(kept) == TRUTH


def test_a_cache_appears_whole_or_not_at_all(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = kept / "train.idx.cache"
    cache.unlink()

    def refuse(path: Path, _: Path) -> None:
        assert not cache.exists()
        raise OSError(5, f"{path}: the host went down")

    monkeypatch.setattr(Path, "replace", refuse)
    assert samples_of(kept) == TRUTH
    assert sorted(path.name for path in kept.rglob("*") if path.is_file()) == [
        *("property", "train.idx", "train.rec")
    ]


def test_ranks_may_open_a_set_at_once(kept: Path) -> None:
    (kept / "train.idx.cache").unlink()
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    ranks = [
        context.Process(target=lambda: answers.put(samples_of(kept) == TRUTH)) for _ in range(4)
    ]
    for rank in ranks:
        rank.start()
    assert [answers.get() for _ in ranks] == [True] * 4
    for rank in ranks:
        rank.join(20)
    assert sorted(path.name for path in kept.iterdir()) == [
        *("property", "train.idx", "train.idx.cache", "train.rec")
    ]
