"""People of a test set, outliers and near copies are found, and taken out."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from damage import face, records
from facescale import backbones
from facescale.cli import main
from facescale.data.dataset import open_dataset
from facescale.data.pairs import PairSet, save_pairs
from facescale.data.sidecars import write_names
from facescale.datasets.clean import Cleaning, embed
from facescale.datasets.likeness import (
    Embedded,
    alike,
    keep_embeddings,
    near_duplicates,
    outliers,
    unit,
)

NAMES = ["ann", "bob", "cem"]


def rows_of(random: np.random.Generator, centres: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return unit(centres[labels] + 0.2 * random.normal(size=(len(labels), centres.shape[1])))


@pytest.fixture
def embedded(tmp_path: Path) -> Embedded:
    """Forty people of ten images; image 25 is person 7's, and image 31 a copy of 30."""
    random = np.random.default_rng(0)
    centres, labels = random.normal(size=(40, 64)), np.repeat(np.arange(40), 10)
    rows = rows_of(random, centres, labels).astype(np.float32)
    rows[25] = rows_of(random, centres, np.array([7]))[0]
    rows[31] = rows[30] + 1e-3
    batches = [torch.from_numpy(rows[start : start + 32]) for start in range(0, 400, 32)]
    return keep_embeddings(batches, labels, 41, tmp_path)


def test_embeddings_are_kept_in_a_file(embedded: Embedded, tmp_path: Path) -> None:
    assert isinstance(embedded.rows, np.memmap)
    assert list(tmp_path.iterdir()) == []  # it has no name
    lengths = np.linalg.norm(embedded.centres, axis=1)
    assert np.allclose(lengths[:40], 1, atol=1e-5)
    assert lengths[40] == 0  # a class without images
    with pytest.raises(ValueError, match="not finite"):
        keep_embeddings([torch.full((2, 4), torch.nan)], np.zeros(2, np.int64), 1, tmp_path)


def test_a_full_disk_is_an_error_with_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(io.BytesIO):
        def write(self, data: object) -> int:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("facescale.datasets.likeness.TemporaryFile", lambda dir: Full())
    with pytest.raises(OSError, match=f"{tmp_path} could not be written: No space left"):
        keep_embeddings([torch.ones(2, 4)], np.zeros(2, np.int64), 1, tmp_path)


def test_an_image_of_another_person_is_an_outlier(embedded: Embedded) -> None:
    (one,) = outliers(embedded, 0.3)
    assert (one.index, one.other) == (25, 7)
    assert one.cosine < 0.3
    every = outliers(embedded, 1.1)
    assert len(every) == 400
    assert every[0] == one  # the farthest first


def test_a_near_copy_is_found_within_its_person(embedded: Embedded) -> None:
    (one,) = near_duplicates(embedded, 0.995)
    assert (one.index, one.other) == (31, 30)
    assert len(near_duplicates(embedded, -1)) == 400 - 40  # each but the first of a person


def test_people_alike_are_found(embedded: Embedded) -> None:
    others = unit(embedded.centres[[3, 12]] + 0.01)
    found = list(alike(embedded.centres, others, 0.9))
    assert [(one.index, one.other) for one in found] == [(3, 0), (12, 1)]


@pytest.fixture
def three(tmp_path: Path) -> Path:
    labels = [0, 0, 0, 1, 1, 2, 2, 2]
    images = [(face(i), label) for i, label in enumerate(labels)]
    images[7] = (face(5), 2)  # a copy
    folder = records(tmp_path / "three", images, 3)
    write_names(folder, NAMES)
    return folder


def test_what_is_found_is_taken_out_in_order(three: Path) -> None:
    dataset = open_dataset(three)
    labels = dataset.labels()  # type: ignore[attr-defined]
    cleaning = Cleaning(dataset, labels, by_name=[1], min_images=3)
    assert cleaning.kept().tolist() == [True] * 3 + [False] * 2 + [True] * 3
    cleaning.near = near_duplicates(embed(Colours(), dataset, labels, three), 0.9999)
    assert [(one.index, one.other) for one in cleaning.near] == [(7, 5)]
    assert cleaning.few() == 0
    cleaning.drop = frozenset({"near"})  # cem has two then, which are too few
    assert cleaning.people_left() == [0]
    assert cleaning.few() == 1
    assert cleaning.subset().class_names == ["ann"]


class Colours(torch.nn.Module):
    """Mean colours of a grid: no face recognition, but copies are copies."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(pixels / 255 - 0.5, 7).flatten(1)


def said(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    main(["data", "clean", *words])
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as ending:
        main(["data", "clean", *words])
    assert ending.value.code == 2
    return capsys.readouterr().err


def test_people_are_taken_out_by_name_and_number(
    three: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    test = tmp_path / "test" / "bob"
    test.mkdir(parents=True)
    (test / "0.jpg").write_bytes(face(20))
    (tmp_path / "names.txt").write_text("cem\nzoe\n")
    tests = [str(tmp_path / "test"), str(tmp_path / "names.txt")]
    text = said(capsys, str(three), str(tmp_path / "out"), "--without", *tests)
    assert "2 people have the name of one in a test set\n  bob\n  cem\n" in text
    made = open_dataset(tmp_path / "out")
    assert (len(made), made.class_names) == (3, ["ann"])  # type: ignore[attr-defined]
    told = json.loads(said(capsys, str(three), "--min-images", "3", "--json"))
    assert (told["people_left"], told["people_with_few_images"]) == (2, 1)
    (three / "names.txt").unlink()
    assert "three has no names.txt" in refused(capsys, str(three), "--without", *tests)


def test_faces_are_compared_by_a_model(
    three: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    model = tmp_path / "model.pt"
    torch.save(backbones.build("mbf", family="arcface_torch").state_dict(), model)
    pairs = PairSet("test", [face(3), face(30), face(31), face(32)], np.array([False, False]))
    save_pairs(tmp_path / "test.bin", pairs)
    options = ("--model", str(model), "--backbone", "mbf", "--device", "cpu")
    report = tmp_path / "report.json"
    near = (*options, "--near", "0.99999", "--drop", "near", "--report", str(report))
    text = said(capsys, str(three), str(tmp_path / "new" / "out"), *near)
    assert "1 images are nearly the same as an earlier one of their person" in text
    assert len(open_dataset(tmp_path / "new" / "out")) == 7
    assert json.loads(report.read_text())["near"][0]["where"].endswith("record 8")
    alike = (*options, "--without", str(tmp_path / "test.bin"), "--similarity", "-1")
    assert "3 people are like one in a test set" in said(capsys, str(three), *alike)
    assert "nothing is left to write" in refused(capsys, str(three), str(tmp_path / "no"), *alike)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "say what is taken out"),
        (("--near", "0.9"), "--near compares faces; give the model"),
        (("--drop", "near"), "--drop near needs a cosine: --near X"),
        (("--model", "m.pt"), "--model is for --without and --similarity"),
        (("--model", "m.pt", "--without", "x"), "--without and --similarity need each other"),
        (("--model", "m.pt", "--near", "2"), "--near is a cosine in [-1, 1], got 2.0"),
        (("--min-images", "0"), "--min-images must be at least 1"),
        (("--without", "lfw.bin"), "lfw.bin has no names; give --model"),
    ],
)
def test_mistakes_are_one_line(
    three: Path, words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refused(capsys, str(three), *words)
