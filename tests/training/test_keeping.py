"""The best checkpoint is kept and named, and a run without gain stops, resumed or not."""

import json
import os
import shutil
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_sets import MIXED, pairs_file

from conftest import RunRanks
from facescale.checkpoint.folder import checkpoints
from facescale.cli import main
from facescale.cli.models import model_place, open_model
from facescale.config import CheckpointConfig, Config, EvaluationConfig
from facescale.data.pairs import PairSet
from facescale.evaluation.verification import Verification, verify
from facescale.training import evaluate as evaluating
from facescale.training import keeping, train
from runs import run_of

Accuracies = dict[int, float]
ACCURACIES: Accuracies = {1: 0.5, 2: 0.9, 3: 0.8, 4: 0.9, 5: 0.7, 6: 0.95, 7: 0.6, 8: 0.6}


@pytest.fixture(autouse=True)
def _verified(tiny_y1: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Verification gives ACCURACIES, by the step that it is called at."""
    rows = np.eye(4)
    answer = verify(rows, rows[[0, 1, 3, 2]], [True, False, True, False], 2)

    def at_step(backbone: Any, pairs: PairSet, *_: Any, **__: Any) -> Verification:
        return replace(answer, accuracy=ACCURACIES[now[0]], xnorm=1.0)

    def noting(state: Any, trackers: Any) -> Any:
        now[0] = state.step
        return real(state, trackers)

    real, now = evaluating.evaluate, [0]

    monkeypatch.setattr("facescale.training.keeping.evaluate", noting)
    monkeypatch.setattr(evaluating, "verify_pairs", at_step)


def config(tmp_path: Path, steps: int, patience: int | None = None, keep: int = 1) -> Config:
    sets = [pairs_file(tmp_path / "some.bin", MIXED)]
    return replace(
        run_of(steps),
        evaluation=EvaluationConfig(sets=sets, every=1, patience=patience),
        checkpoint=CheckpointConfig(every=4, keep=keep, best="some"),
    )


def names(run: Path) -> list[int]:
    return [int(path.name.removeprefix("step-")) for path in checkpoints(run / "checkpoints")]


def written(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "checkpoints" / "best.json").read_text())
    return found


def test_the_best_checkpoint_stays_beyond_keep_and_is_named(tmp_path: Path) -> None:
    summary = train(config(tmp_path, 8), tmp_path / "run")
    assert names(tmp_path / "run") == [6, 8]
    assert written(tmp_path / "run")["step"] == 6
    assert written(tmp_path / "run")["accuracy"] == 0.95
    assert summary.best is not None
    assert summary.best.step == 6
    assert summary.steps == 8


def test_the_first_of_equal_ones_is_the_best(tmp_path: Path) -> None:
    train(config(tmp_path, 5), tmp_path / "run")
    assert written(tmp_path / "run")["step"] == 2
    assert names(tmp_path / "run") == [2, 5]


def test_a_run_without_gain_stops_and_stays_stopped(tmp_path: Path) -> None:
    run = tmp_path / "run"
    summary = train(config(tmp_path, 8, patience=3), run)
    assert summary.steps == 5  # 0.8, 0.9 and 0.7 are no gain over 0.9
    assert names(run) == [2, 5]
    assert (run / "model.safetensors").exists()
    assert (
        "stopping at step 5: 3 verifications on some without gain"
        in (run / "training.log").read_text()
    )
    assert train(config(tmp_path, 8, patience=3), run, resume=True).steps == 0
    assert train(config(tmp_path, 8, patience=4), run, resume=True).steps == 3
    assert written(run)["step"] == 6


def test_results_after_the_checkpoint_that_a_run_resumes_from_are_taken_again(
    tmp_path: Path,
) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    train(config(tmp_path, 8, patience=3, keep=9), whole)
    shutil.copytree(whole, stopped)
    shutil.rmtree(stopped / "checkpoints" / "step-00000005")
    assert train(config(tmp_path, 8, patience=3), stopped, resume=True).steps == 1
    assert written(stopped) == written(whole)
    assert [step for step, _ in written(stopped)["results"]] == [1, 2, 3, 4, 5]


def test_a_run_that_ended_before_its_verification_makes_up_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, verified = tmp_path / "run", vars(keeping)["evaluate"]
    asked: list[int] = []

    def ends(state: Any, trackers: Any) -> Any:
        if state.step == 4:
            raise OSError("killed")
        return verified(state, trackers)

    def noting(state: Any, trackers: Any) -> Any:
        asked.append(state.step)
        return verified(state, trackers)

    monkeypatch.setattr(keeping, "evaluate", ends)
    with pytest.raises(OSError, match="killed"):
        train(config(tmp_path, 4), run)
    monkeypatch.setattr(keeping, "evaluate", noting)
    summary = train(config(tmp_path, 4), run, resume=True)
    assert (summary.steps, list(summary.verifications)) == (0, ["some"])
    assert [step for step, _ in written(run)["results"]] == [1, 2, 3, 4]
    train(config(tmp_path, 4), run, resume=True)
    assert asked == [4]


def test_all_ranks_stop_together(tmp_path: Path, run_ranks: RunRanks) -> None:
    chosen = replace(config(tmp_path, 8, patience=2), timeout_s=30.0)

    def work(rank: int) -> int:
        return train(chosen, tmp_path / "run").steps

    assert run_ranks(work, 2) == [4, 4]


def test_a_model_is_chosen_by_the_checkpoint(tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(config(tmp_path, 5, keep=2), run)

    def options(which: str | None) -> Namespace:
        return Namespace(model=str(run), checkpoint=which, backbone=None, family=None)

    for which, step in (("best", 2), ("last", 5), ("4", 4)):
        assert model_place(options(which)).name == f"step-{step:08d}"
    assert model_place(options(None)) == run / "model.safetensors"
    last = open_model(options("last")).state_dict()
    assert all(torch.equal(last[k], v) for k, v in open_model(options(None)).state_dict().items())
    best = open_model(options("best")).state_dict()
    assert not all(torch.equal(last[name], best[name]) for name in best)
    with pytest.raises(FileNotFoundError, match="no checkpoint of step 3; there are 2, 4, 5"):
        model_place(options("3"))
    with pytest.raises(ValueError, match="a checkpoint is last, best or a step, got 'first'"):
        model_place(options("first"))
    long_ago = (run / "checkpoints" / "step-00000005").stat().st_mtime - 60
    os.utime(run / "model.safetensors", (long_ago, long_ago))  # the run was resumed since
    assert model_place(options(None)).name == "step-00000005"


def test_a_set_that_is_not_verified_is_refused(tmp_path: Path) -> None:
    chosen = replace(config(tmp_path, 2), checkpoint=CheckpointConfig(best="lfw"))
    with pytest.raises(ValueError, match=r"best is lfw, not one of .*sets; they are some"):
        train(chosen, tmp_path / "run")
    with pytest.raises(ValueError, match=r"patience needs evaluation\.every and checkpoint\.best"):
        Config(evaluation=EvaluationConfig(patience=2))


@pytest.mark.parametrize("text", ["{}", "[]", '{"set": "some", "results": [[1, "x"]]}', "{"])
def test_a_damaged_file_is_one_line(
    tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "best.json").write_text(text)
    with pytest.raises(SystemExit):
        main(["export", str(tmp_path), "--checkpoint", "best"])
    said = capsys.readouterr().err
    assert "best.json" in said
    assert said.count("\n") == 1
