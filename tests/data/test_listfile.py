"""Lists of paths and labels, of every kind that is around."""

import os
from pathlib import Path

import pytest

from facescale.data.dataset import found_in, open_dataset
from facescale.data.listfile import ListFile
from facescale.data.unreadable import UnreadableRecord


@pytest.fixture
def images(tmp_path: Path) -> Path:
    (tmp_path / "a b").mkdir()
    for name in ("a b/0.jpg", "1.jpg", "2,3.jpg"):
        (tmp_path / name).write_bytes(name.encode())
    return tmp_path


def read(path: Path, text: str, encoding: str = "utf-8") -> list[tuple[bytes, int]]:
    path.write_text(text, encoding=encoding)
    faces = open_dataset(path)
    assert isinstance(faces, ListFile)
    return [tuple(faces.read(index)) for index in range(len(faces))]  # type: ignore[misc]


def test_every_kind_of_list_is_read(images: Path) -> None:
    wanted = [(b"a b/0.jpg", 1), (b"1.jpg", 0), (b"1.jpg", 2)]
    for name, text in {
        "a.csv": "path,label\na b/0.jpg,1\n1.jpg,0\n1.jpg,2\n",
        "b.csv": "Label;age;Path\r\n1;x;a b/0.jpg\r\n0;y;1.jpg\r\n2;z;1.jpg\r\n",
        "c.tsv": "path\tlabel\na b/0.jpg\t1\n\n1.jpg\t0\n1.jpg\t2",
        "insightface.lst": "1\ta b/0.jpg\t1\n0\t1.jpg\t0\n1\t1.jpg\t2\n",
        "boxes.lst": "1\ta b/0.jpg\t1\t0\t0\t9\t9\n0\t1.jpg\t0\n1\t1.jpg\t2\n",
        "im2rec.lst": "0\t1.000000\ta b/0.jpg\n1\t0.000000\t1.jpg\n2\t2.000000\t1.jpg\n",
        "text.txt": "a b/0.jpg 1\n1.jpg 0\n1.jpg 2\n",
        "two.lst": "a b/0.jpg\t1\n1.jpg\t0\n1.jpg\t2\n",
    }.items():
        assert read(images / name, text) == wanted, name
    assert read(images / "bom.csv", "path,label\n1.jpg,0\n", "utf-8-sig") == [(b"1.jpg", 0)]
    assert read(images / "bom.txt", "1.jpg 0\n", "utf-8-sig") == [(b"1.jpg", 0)]
    assert read(images / "q.csv", 'path,label\n"2,3.jpg",0\n') == [(b"2,3.jpg", 0)]
    absolute = f"path,label\n{images / '1.jpg'},0\n"
    assert read(images / "abs.csv", absolute) == [(b"1.jpg", 0)]


def test_names_are_numbered_in_their_order(images: Path) -> None:
    path = images / "a.csv"
    assert read(path, "path,label\n1.jpg,zoe\n1.jpg,ann\n1.jpg,zoe\n") == [
        (b"1.jpg", label) for label in (1, 0, 1)
    ]
    assert open_dataset(path).class_names == ["ann", "zoe"]  # type: ignore[attr-defined]
    assert str(found_in(open_dataset(path))) == "3 images of 2 people"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("file,label\n1.jpg,0\n", "must name the columns `path` and `label`"),
        ("path,label\n1.jpg\n", "line 2: 1 columns are fewer"),
        ("path,label\n1.jpg,0\n,1\n", "line 3: give a path and a label"),
        ("path,label\n1.jpg,-1\n", "line 2: label -1 is no whole number"),
        ("path,label\n1.jpg,0.5\n", "line 2: label 0.5 is no whole number"),
        ("path,label\n1.jpg,99999\n", "labels go up to 99999"),
        ("path,label\n", "lists no images"),
        ('path,label\n"1.jpg,0\n', "line 2: unexpected end of data"),
        ("path,label\n" + "x" * 20_000, "line 2: it is longer than"),
        ("path,label\n9.jpg,0\n", "paths in a list are relative to its folder"),
        ("", "must name the columns"),
    ],
)
def test_a_line_that_is_none_is_named(images: Path, text: str, reason: str) -> None:
    (images / "a.csv").write_text(text)
    with pytest.raises((ValueError, FileNotFoundError), match=reason):
        open_dataset(images / "a.csv")


def test_an_image_that_cannot_be_read_is_named_with_its_list(images: Path) -> None:
    path = images / "a.csv"
    os.mkfifo(images / "pipe")
    path.write_text("path,label\n1.jpg,0\n9.jpg,0\npipe,1\na b,1\n")
    faces = open_dataset(path)
    for index, reason in ((1, "9.jpg of .*No such file"), (2, "not a regular"), (3, "regular")):
        with pytest.raises(UnreadableRecord, match=reason):
            faces.read(index)


@pytest.mark.parametrize("labels", ["01", "ab"])
def test_a_list_that_is_written_anew_gives_no_wrong_label(images: Path, labels: str) -> None:
    path = images / "a.csv"
    first, second = labels[0], labels[1]
    path.write_text(f"path,label\n1.jpg,{first}\n1.jpg,{second}\n")
    faces = open_dataset(path)
    assert [faces.read(index).label for index in (0, 1)] == [0, 1]
    path.write_text(f"path,label\n1.jpg,{second}\n1.jpg,{first}\n")
    with pytest.raises(UnreadableRecord, match="the list was written anew since it was opened"):
        faces.read(0)


def test_a_path_that_is_too_long_makes_no_long_message(images: Path) -> None:
    path = images / "a.csv"
    path.write_text(f"path,label\n1.jpg,0\n{'x' * 5000},0\n")
    with pytest.raises(UnreadableRecord, match=r"a\.csv image 1: File name too long"):
        open_dataset(path).read(1)
    path.write_text(f"path,label\n{'x' * 5000},0\n")
    with pytest.raises(FileNotFoundError, match="lists first, does not exist") as raised:
        open_dataset(path)
    assert len(str(raised.value)) < 1000
