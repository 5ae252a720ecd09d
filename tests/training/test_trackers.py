"""Where figures go: files that are read back, trackers that are missing, fail, or are our own."""

import json
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from facescale.config import CheckpointConfig, TrainConfig
from facescale.training import keeping, train
from facescale.training.metrics import read_metrics
from facescale.training.trackers import Console, Jsonl, Run, Tracker, register, tracker
from runs import small_run

pytestmark = pytest.mark.usefixtures("tiny_y1")


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is gone after it."""
    monkeypatch.setattr(tracker, "TRACKERS", dict(tracker.TRACKERS))


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """All scalars in TensorBoard's event files, as TensorBoard itself reads them."""
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    read = events.EventAccumulator(str(folder), size_guidance={"scalars": 0})
    read.Reload()
    return {
        name: [(event.step, event.value) for event in read.Scalars(name)]
        for name in read.Tags()["scalars"]
    }


def test_tensorboard_shows_what_metrics_jsonl_has(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="comes with the extra 'track'")
    train(small_run(trackers=["jsonl", "tensorboard"]), tmp_path)
    shown = scalars(tmp_path / "tensorboard")
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    for name in ("loss", "lr", "epoch"):
        assert [step for step, _ in shown[name]] == [row["step"] for row in rows]
        values = [value for _, value in shown[name]]
        assert values == pytest.approx([row[name] for row in rows], rel=1e-6)
    assert not (tmp_path / "training.log").exists()  # the console was not asked for


def test_tensorboard_drops_the_steps_that_a_resumed_run_takes_again(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="comes with the extra 'track'")
    config = small_run(trackers=["tensorboard"])
    train(config, tmp_path)
    newest = max((tmp_path / "checkpoints").glob("step-*"))
    newest.rename(tmp_path / "lost")  # as if the run had been killed after step 2
    train(config, tmp_path, resume=True)
    assert [step for step, _ in scalars(tmp_path / "tensorboard")["loss"]] == [1, 2, 3, 4]


def test_wandb_keeps_an_offline_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb", reason="Weights & Biases is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    train(small_run(trackers=["jsonl", "wandb"]), tmp_path)
    (record,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    assert (tmp_path / "wandb_id").read_text() in record.name
    assert record.stat().st_size > 0
    assert wandb.run is None  # closed


def test_a_missing_package_ends_the_run_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracker, "find_spec", lambda name: None)
    message = r"tracker tensorboard needs the package tensorboard: pip install 'facescale\[track\]'"
    with pytest.raises(ImportError, match=message):
        train(small_run(trackers=["console", "tensorboard"]), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_unknown_tracker_is_refused_with_a_hint(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown 'jsonnl', did you mean jsonl"):
        train(small_run(trackers=["jsonnl"]), tmp_path / "run")


@pytest.mark.usefixtures("registry")
def test_a_tracker_is_told_everything_in_order(tmp_path: Path) -> None:
    told: list[Any] = []

    @register("told")
    class Told(Tracker):
        def start(self, run: Run) -> None:
            told.append(("start", run.step, run.num_steps, run.config["seed"], run.output))

        def advance(self, step: int) -> None:
            told.append(step)

        def numbers(self, step: int, values: Mapping[str, float]) -> None:
            told.append((step, sorted(values)[:2]))

        def close(self) -> None:
            told.append("close")

    train(small_run(trackers=["told"], log_every=3), tmp_path)
    figures = ["collectives", "epoch"]
    assert told == [("start", 0, 4, 0, tmp_path), 1, 2, 3, (3, figures), 4, (4, figures), "close"]


@pytest.mark.usefixtures("registry")
def test_a_tracker_that_fails_is_left_out_and_the_run_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    @register("fails")
    class Fails(Tracker):
        def numbers(self, step: int, values: Mapping[str, float]) -> None:
            raise RuntimeError("the service is gone")

    train(small_run(trackers=["console", "fails", "jsonl"]), tmp_path)
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 4
    said = "tracker Fails is left out from now on: RuntimeError: the service is gone"
    assert capsys.readouterr().out.count(said) == 1


@pytest.mark.usefixtures("registry")
def test_a_tracker_that_cannot_start_costs_no_other(tmp_path: Path) -> None:
    told: list[int] = []

    @register("fails")
    class Fails(Tracker):
        def start(self, run: Run) -> None:
            raise RuntimeError("no network")

    @register("starts_later")
    class StartsLater(Tracker):
        def start(self, run: Run) -> None:
            self.texts: list[str] = []

        def text(self, step: int, text: str) -> None:
            self.texts.append(text)

        def numbers(self, step: int, values: Mapping[str, float]) -> None:
            told.append(step)
            assert "tracker Fails is left out from now on: RuntimeError: no network" in self.texts

    train(small_run(trackers=["fails", "starts_later"]), tmp_path)
    assert told == [1, 2, 3, 4]


def test_records_after_the_step_of_a_resumed_run_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 3.0}\n{"step": 2, "loss": 2.0}\n{"step": 3, "lo')
    jsonl = Jsonl()
    jsonl.start(Run(tmp_path, {}, step=1, num_steps=3))
    jsonl.numbers(2, {"loss": 2.5})
    jsonl.close()
    assert [json.loads(line)["loss"] for line in path.read_text().splitlines()] == [3.0, 2.5]


def test_figures_damaged_by_hand_cost_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics = tmp_path / "metrics.jsonl"
    train(small_run(train=TrainConfig(batch_size=4, steps=2)), tmp_path)
    spoilt = metrics.read_text() + "by hand\n" + metrics.read_text()
    metrics.write_text(spoilt)
    train(small_run(), tmp_path, resume=True)
    assert [row["step"] for row in read_metrics(metrics)] == [3, 4]
    assert (tmp_path / "metrics.jsonl.damaged").read_text() == spoilt
    assert "line 3 is no record: " in (tmp_path / "training.log").read_text()

    def spoil(*_: object) -> dict[str, Any]:
        metrics.write_text("by hand\n" * 2)
        return {}

    monkeypatch.setattr(keeping, "evaluate", spoil)  # at the end, after the last line
    train(small_run(train=TrainConfig(batch_size=4, steps=6)), tmp_path, resume=True)
    assert "training.png is not drawn: " in (tmp_path / "training.log").read_text()


def test_a_reader_that_leaves_costs_no_line_of_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with suppress(BrokenPipeError), open(writing, "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        train(small_run(), tmp_path)
    lines = (tmp_path / "training.log").read_text()
    assert [f"Global Step: {step} " in lines for step in range(1, 5)] == [True] * 4
    assert capfd.readouterr().err == ""


def test_the_log_has_no_control_characters_of_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    console = Console()
    console.start(Run(tmp_path, {}, step=0, num_steps=1))
    console.text(0, "anna\x1b[2J\n has no image")
    console.close()
    (line,) = (tmp_path / "training.log").read_text().splitlines()
    assert line.endswith(r"-anna\x1b[2J\n has no image")
    assert capsys.readouterr().out == f"{line}\n"


def test_what_a_short_run_never_reaches_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = small_run(checkpoint=CheckpointConfig(every=10))
    schedule = replace(config.optim.schedule, warmup=5)
    margin = replace(config.head.margin, warmup=6)
    config = replace(
        config,
        optim=replace(config.optim, schedule=schedule),
        head=replace(config.head, margin=margin),
    )
    train(config, tmp_path)
    said = capsys.readouterr().out
    assert "optim.schedule.warmup is 5 steps, but the run has 4: optim.lr is not reached" in said
    assert "head.margin.warmup is 6 steps, but the run has 4" in said
