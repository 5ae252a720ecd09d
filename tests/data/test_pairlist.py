"""Lists of pairs: LFW's form and files with a flag; people where they are known."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from facescale.data.pairlist import load_pair_list

PEOPLE = {"Ann_A": 3, "Bob_B": 2}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    for name, count in PEOPLE.items():
        (tmp_path / name).mkdir()
        for number in range(1, count + 1):
            pixels = random.integers(0, 256, (112, 112, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{name}_{number:04d}.png")
    return tmp_path


def test_lfws_form_is_read_with_its_people(photos: Path, tmp_path: Path) -> None:
    path = tmp_path / "elsewhere" / "pairs.txt"
    path.parent.mkdir()
    path.write_text("1\t2\nAnn_A\t1\t3\nBob_B\t1\t2\nAnn_A\t2\tBob_B\t1\nBob_B\t2\tAnn_A\t3\n")
    pairs = load_pair_list(path, photos)
    assert pairs.name == "pairs"
    assert pairs.same.tolist() == [True, True, False, False]
    assert pairs.images[1] == (photos / "Ann_A/Ann_A_0003.png").read_bytes()
    assert pairs.people is not None
    assert pairs.people.tolist() == [[0, 0], [1, 1], [0, 1], [1, 0]]
    assert len(pairs.distinct()[0]) == 5


@pytest.mark.parametrize("between", [" ", ",", "\t", ", "])
def test_files_and_a_flag_are_read(photos: Path, between: str) -> None:
    lines = [("Ann_A/Ann_A_0001.png", "Ann_A/Ann_A_0002.png", "1")]
    lines += [("Ann_A/Ann_A_0001.png", "Bob_B/Bob_B_0001.png", "0")]
    path = photos / "mine.csv"
    path.write_text("# ours\n\n" + "".join(between.join(line) + "\n" for line in lines))
    pairs = load_pair_list(path)
    assert pairs.same.tolist() == [True, False]
    assert pairs.people is not None
    path.write_text(path.read_text()[:-2] + "1\n")  # two folders, one person
    assert load_pair_list(path).people is None


def test_people_may_be_called_by_numbers(photos: Path) -> None:
    for name in ("0000045", "0000099"):
        (photos / name).mkdir()
        for number in (1, 2):
            source = photos / "Ann_A" / f"Ann_A_{number:04d}.png"
            (photos / name / f"{name}_{number:04d}.png").write_bytes(source.read_bytes())
    path = photos / "pairs.txt"
    path.write_text("0000045 1 2\n0000045 1 0000099 2\n")
    assert load_pair_list(path).same.tolist() == [True, False]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("Ann_A 1", "line 1: 'Ann_A 1' is neither"),
        ("a.png b.png 2", "line 1: 'a.png b.png 2' is neither"),
        ("a.png,b.png,1\na.png,b.png,2", "line 2: 'a.png,b.png,2' is neither"),
        ('"a.png,b.png,1', "line 1: unexpected end of data"),
        ("Ann_A 1 9", "there is no .*Ann_A_0009.jpg; name the folder by --images"),
        ("10 300", "holds no pairs"),
        ("1 2\nAnn_A 1 2\n", "holds 1 pairs, but its first line says 4; fetch it again"),
    ],
)
def test_a_wrong_line_is_named(photos: Path, line: str, message: str) -> None:
    (photos / "pairs.txt").write_text(line)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load_pair_list(photos / "pairs.txt")


def test_a_photograph_that_is_not_aligned_is_refused(photos: Path) -> None:
    Image.new("RGB", (250, 250)).save(photos / "Ann_A" / "Ann_A_0001.png")
    for line in ("Ann_A 1 2", "Ann_A 2 1"):
        (photos / "pairs.txt").write_text(line)
        with pytest.raises(ValueError, match="has 250 x 250 pixels, so it is not an aligned face"):
            load_pair_list(photos / "pairs.txt")
