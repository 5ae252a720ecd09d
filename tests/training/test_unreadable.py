"""An image that cannot be read costs no finished step, and every run says what it has found."""

from pathlib import Path

import numpy as np
import pytest

from conftest import RunRanks
from facescale.checkpoint import folder as checkpoint
from facescale.cli.train import _show_summary
from facescale.config import CheckpointConfig, Config, DataConfig, TrainConfig
from facescale.data.folder import ImageFolder
from facescale.data.order import EpochOrder
from facescale.random import derive_seed
from facescale.training import train
from facescale.training.metrics import read_metrics
from facescale.training.state import ORDER
from runs import small_run, write_people

BATCH = 4


def run_on(folder: Path, steps: int = 5, on_error: str = "stop") -> Config:
    return small_run(
        data=DataConfig(path=str(folder), threads=1, on_error=on_error),  # type: ignore[arg-type]
        train=TrainConfig(global_batch_size=BATCH, steps=steps),
        checkpoint=CheckpointConfig(every=100),
    )


def damage(folder: Path, position: int) -> Path:
    """Cut the file that the run reads at `position` of its stream; returns its path."""
    images = ImageFolder(folder)
    (index,) = EpochOrder(len(images), derive_seed(0, ORDER)).indices(np.array([position]))
    path = Path(images.describe(int(index)))
    path.write_bytes(path.read_bytes()[:100])
    return path


def refused(rank: int, config: Config, output: Path, resume: bool) -> str:
    try:
        train(config, output, resume=resume)
    except ValueError as error:
        return str(error)
    return "trained"


@pytest.mark.usefixtures("tiny_y1")
def test_a_run_saves_and_stops_in_front_of_an_unreadable_image(
    run_ranks: RunRanks, tmp_path: Path
) -> None:
    people = write_people(tmp_path / "people", dict.fromkeys("abcd", 6))
    path = damage(people, position=3 * BATCH + 1)  # read by rank 0, for the fourth step
    config, output = run_on(people), tmp_path / "run"
    for said in run_ranks(refused, 2, config, output, False):
        assert said.startswith(f"{path}: ")
        assert said.endswith("data.on_error: skip. Saved at step 3")
    (saved,) = checkpoint.checkpoints(output / "checkpoints")
    assert saved.name == "step-00000003"
    for said in run_ranks(refused, 2, config, output, True):  # again, before any step
        assert said.startswith(f"{path}: ")
        assert "Saved" not in said
    skips = run_on(people, on_error="skip")
    assert run_ranks(refused, 2, skips, output, True) == ["trained", "trained"]
    rows = read_metrics(output / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5]
    assert [row.get("unreadable") for row in rows] == [None, None, None, 1, 1]


@pytest.mark.usefixtures("tiny_y1")
def test_an_unreadable_image_behind_the_last_step_ends_nothing(tmp_path: Path) -> None:
    people = write_people(tmp_path / "people", dict.fromkeys("abcd", 6))
    damage(people, position=3 * BATCH)
    assert train(run_on(people, steps=3), tmp_path / "run").steps == 3
    for steps in (3, 2):  # a run that has ended reads nothing more
        assert train(run_on(people, steps=steps), tmp_path / "run", resume=True).steps == 0


@pytest.mark.usefixtures("tiny_y1")
def test_the_last_screen_says_how_many_images_were_passed_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    people = write_people(tmp_path / "people", dict.fromkeys("abcd", 6))
    whole = {path: path.read_bytes() for path in people.rglob("*.png")}
    damage(people, position=1)
    damage(people, position=5)
    summary = train(run_on(people, steps=12, on_error="skip"), tmp_path / "run")
    assert summary.unreadable == 2  # twice in each of two epochs
    for path, content in whole.items():  # repaired, so nothing is passed over again
        path.write_bytes(content)
    resumed = train(run_on(people, steps=13, on_error="skip"), tmp_path / "run", resume=True)
    assert resumed.unreadable == 2
    _show_summary(summary)
    assert "unreadable images passed over: 2" in capsys.readouterr().out


@pytest.mark.usefixtures("tiny_y1")
@pytest.mark.parametrize(
    ("images", "found", "warned"),
    [
        ({"a": 3, "b": 2}, "data: 5 images of 2 people", ""),
        ({"a": 5}, "data: 5 images of 1 person", "one person only: the loss says nothing"),
    ],
)
def test_a_run_says_what_it_has_found(
    tmp_path: Path, images: dict[str, int], found: str, warned: str
) -> None:
    people = write_people(tmp_path / "people", images)
    train(run_on(people, steps=1), tmp_path / "run")
    lines = (tmp_path / "run/training.log").read_text().splitlines()
    assert lines[0].endswith(found)
    assert (warned in lines[1]) if warned else ("Speed" in lines[1])
