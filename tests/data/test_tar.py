"""Tar shards as WebDataset and tar itself write them."""

import io
import json
import tarfile
from pathlib import Path

import pytest

from facescale.data.dataset import open_dataset
from facescale.data.recordfile import TruncatedError
from facescale.data.tar import TarShards, expand
from facescale.data.tarfiles import members
from facescale.data.unreadable import UnreadableRecord

Files = list[tuple[str, bytes]]


def write(path: Path, files: Files, kind: int = tarfile.USTAR_FORMAT) -> Path:
    with tarfile.open(path, "w", format=kind) as archive:
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def sample(key: str, label: int) -> Files:
    return [(f"{key}.jpg", f"image {key}".encode()), (f"{key}.cls", b"%d" % label)]


def read(source: Path) -> list[tuple[bytes, int]]:
    faces = open_dataset(source)
    assert isinstance(faces, TarShards)
    return [tuple(faces.read(index)) for index in range(len(faces))]  # type: ignore[misc]


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_kind_of_archive_is_read(tmp_path: Path, kind: int) -> None:
    long = "/".join(["folder"] * 13) + "/" + "n" * 90 + ("ö" * 60 if kind else "")
    files = [*sample("0", 1), *sample(long, 0)]
    with tarfile.open(tmp_path / "a.tar", "w", format=kind) as archive:
        for name, content in files:
            archive.add(tmp_path, "folder", recursive=False)  # neither a folder nor a link counts
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
            info = tarfile.TarInfo("x.jpg")
            info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(info)
    assert read(tmp_path / "a.tar") == [(b"image 0", 1), (f"image {long}".encode(), 0)]
    with (tmp_path / "a.tar").open("rb") as file, tarfile.open(tmp_path / "a.tar") as archive:
        ours = [(name, offset, size) for name, offset, size in members(file, "a.tar")]
        assert ours == [(m.name, m.offset_data, m.size) for m in archive if m.isreg()]


def test_a_folder_and_a_pattern_of_shards_are_read_in_order(tmp_path: Path) -> None:
    for number in range(3):
        write(tmp_path / f"x-{number:03d}.tar", sample(f"{number}", number))
    images = [(f"image {number}".encode(), number) for number in range(3)]
    assert read(tmp_path) == images
    assert read(tmp_path / "x-{000..002}.tar") == images
    assert read(tmp_path / "x-{002,001}.tar") == images[:0:-1]
    with pytest.raises(FileNotFoundError, match=r"x-003\.tar"):
        open_dataset(tmp_path / "x-{000..003}.tar")
    assert open_dataset(tmp_path).describe(1).endswith("x-001.tar byte 512")
    (tmp_path / "._x-000.tar").write_bytes(b"\0\5\26\7")  # as macOS leaves it
    assert read(tmp_path) == images


def test_patterns_stand_for_names() -> None:
    assert expand("a") == ["a"]
    assert expand("a{8..11}b") == ["a8b", "a9b", "a10b", "a11b"]
    assert expand("{a,b}/{00..01}.tar") == ["a/00.tar", "a/01.tar", "b/00.tar", "b/01.tar"]
    for pattern in ("{}", "{a}", "{3..1}", "{0..999999999}", "{0..9999}{0..9999}"):
        with pytest.raises(ValueError, match="stands for no names, or for too many"):
            expand(pattern)


def test_labels_come_from_cls_or_json(tmp_path: Path) -> None:
    files = [
        *[("0.jpg", b"a"), ("0.json", json.dumps({"label": 3, "age": 4}).encode())],
        *[("1.PNG", b"b"), ("1.cls", b"2\n"), ("1.txt", b"a note")],
        *[("2.json", b'{"cls": 1}'), ("2.webp", b"c")],
        *[("__meta__.json", b"{"), ("sub/.hidden.jpg", b"")],
        *[("3.seg.jpg", b"other"), ("3.jpg", b"d"), ("3.cls", b"0")],
    ]
    write(tmp_path / "a.tar", files)
    assert read(tmp_path) == [(b"a", 3), (b"b", 2), (b"c", 1), (b"d", 0)]


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ([("0.jpg", b"a")], "sample '0' has no label"),
        ([("0.cls", b"1")], "sample '0' has no image"),
        ([("0.jpg", b"a"), ("0.cls", b"-1")], "the label '-1', which is no number"),
        ([("0.jpg", b"a"), ("0.cls", b"9" * 70_000)], "a .cls of 70000 bytes"),
        ([("0.jpg", b"a"), ("0.json", b"[" * 60_000)], "damaged .json"),
        ([("0.jpg", b"a"), ("0.jpg", b"a"), ("0.cls", b"0")], r"two files \.jpg"),
        ([], "no image has a label"),
    ],
)
def test_a_sample_that_is_none_is_named(tmp_path: Path, files: Files, reason: str) -> None:
    write(tmp_path / "a.tar", files)
    with pytest.raises(ValueError, match=reason):
        open_dataset(tmp_path)


def test_archives_that_are_cut_damaged_or_compressed_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tar", [*sample("0", 0), ("1.jpg", bytes(9000)), ("1.cls", b"1")])
    whole = path.read_bytes()
    for size in (0, 100, 700, 1100, 5000):
        path.write_bytes(whole[:size])
        with pytest.raises(TruncatedError, match=r"copy it again"):
            open_dataset(path)
    changed = bytearray(whole)
    changed[1024] ^= 1
    path.write_bytes(changed)
    with pytest.raises(ValueError, match="no tar header at byte 1024"):
        open_dataset(path)
    for mode, name in (("w:gz", "gzip"), ("w:bz2", "bzip2"), ("w:xz", "xz")):
        with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
            archive.add(__file__)
        with pytest.raises(ValueError, match=rf"compressed \({name}\)"):
            open_dataset(path)


def test_samples_behind_zeros_are_not_lost_without_a_word(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tar", [*sample("0", 0), *sample("1", 1)])
    whole = path.read_bytes()
    path.write_bytes(whole[:2048] + bytes(512) + whole[2560:])  # the header of 1.jpg
    with pytest.raises(ValueError, match="zeros in place of a header at byte 2048, and data beh"):
        open_dataset(path)
    path.write_bytes(whole + whole)
    with pytest.raises(ValueError, match="if several were joined to one"):
        open_dataset(path)
    for padding in (0, 512, 1024):  # tar fills the last 10 KiB, and nobody has to
        path.write_bytes(whole[: 8 * 512] + bytes(padding))
        assert len(open_dataset(path)) == 2


def test_an_archive_that_is_written_anew_gives_no_wrong_label(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tar", [*sample("0", 0), *sample("long", 1)])
    faces = open_dataset(path)
    write(path, [*sample("long", 1), *sample("0", 0)])
    for index in range(2):
        with pytest.raises(UnreadableRecord, match="archive was written anew since it was opened"):
            faces.read(index)


def test_links_are_counted_in_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with tarfile.open(write(tmp_path / "a.tar", sample("0", 0)), "a") as archive:
        for kind in (tarfile.LNKTYPE, tarfile.SYMTYPE):
            info = tarfile.TarInfo("1.jpg")
            info.type, info.linkname = kind, "0.jpg"
            archive.addfile(info)
    assert read(tmp_path) == [(b"image 0", 0)]
    assert "a.tar: 2 links are passed over; pack the files" in caplog.text


def test_headers_that_ask_for_much_are_refused(tmp_path: Path) -> None:
    info = tarfile.TarInfo("0.jpg")
    info.size = 2**40
    (tmp_path / "a.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    with pytest.raises(TruncatedError, match="ends inside the member at byte 0"):
        open_dataset(tmp_path)
    info.size, info.type = 2**20, b"x"
    (tmp_path / "a.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(2**20 + 1024))
    with pytest.raises(ValueError, match="extended header at byte 512 is too large"):
        open_dataset(tmp_path)
    info.size = 512
    header = info.tobuf(tarfile.GNU_FORMAT)
    (tmp_path / "a.tar").write_bytes((header + b"8 path=a" + bytes(504)) * 2)
    with pytest.raises(ValueError, match="pax header at byte 512 is damaged"):
        open_dataset(tmp_path)
