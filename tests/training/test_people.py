"""A checkpoint knows whose class centres it has: other people are refused, with the way out."""

from pathlib import Path

import pytest

from facescale.config import Config, DataConfig, StartConfig, TrainConfig
from facescale.training import build, train
from facescale.training.start import begin_from_
from runs import CPU, small_run, write_people


def run_on(folder: Path, steps: int, start: StartConfig | None = None) -> Config:
    return small_run(
        data=DataConfig(path=str(folder), threads=1),
        train=TrainConfig(batch_size=4, steps=steps),
        start=start or StartConfig(),
    )


@pytest.mark.usefixtures("tiny_y1")
def test_a_resume_on_other_people_is_refused_and_start_names_is_the_way(tmp_path: Path) -> None:
    old = write_people(tmp_path / "old", dict.fromkeys(["p0", "p1", "p2"], 3))
    new = write_people(tmp_path / "new", dict.fromkeys(["p1", "p2", "z9"], 3))
    train(run_on(old, steps=2), tmp_path / "run")
    train(run_on(old, steps=3), tmp_path / "run", resume=True)
    with pytest.raises(ValueError, match=r"other people, .*start\.checkpoint and start\.names"):
        train(run_on(new, steps=4), tmp_path / "run", resume=True)
    start = StartConfig(checkpoint=str(tmp_path / "run"))
    with pytest.raises(ValueError, match=r"as many classes as the data \(3\), but other people"):
        begin_from_(build(run_on(new, 2, start), CPU), start)
    for folder in (old, new):
        names = sorted(person.name for person in folder.iterdir())
        (tmp_path / f"{folder.name}.txt").write_text("\n".join(names))
    names = [str(tmp_path / "old.txt"), str(tmp_path / "new.txt")]
    start = StartConfig(checkpoint=str(tmp_path / "run"), names=names)
    begin_from_(build(run_on(new, 2, start), CPU), start)


def test_the_fingerprint_is_of_names_and_their_order(tmp_path: Path) -> None:
    def people(folder: str, names: list[str]) -> str:
        config = run_on(write_people(tmp_path / folder, dict.fromkeys(names, 3)), 1)
        return build(config, CPU).found.people

    first = people("a", ["p0", "p1"])
    assert people("b", ["p0", "p1"]) == first
    assert people("c", ["p0", "p2"]) != first
    assert people("d", ["p", "0p1"]) != first
