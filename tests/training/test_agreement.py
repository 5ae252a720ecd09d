"""Ranks that would train different runs are refused before the first step."""

from dataclasses import replace
from pathlib import Path

import pytest

from conftest import RunRanks
from facescale.config import DataConfig, HeadConfig, OptimConfig
from facescale.distributed import world_group
from facescale.training import train
from facescale.training.agreement import check_same, of_run
from runs import small_run, write_people

DIFFERENCES = {
    "seed": {"seed": 1},
    "optim.lr": {"optim": OptimConfig(lr=0.03)},
    "head.shards": {"head": HeadConfig(sample_rate=0.5, shards=1)},
    "data.num_classes": {"data": DataConfig(path="synthetic", num_classes=51, num_images=64)},
    "number of evaluation.sets": {},
}


def refused(rank: int, name: str, folder: Path) -> str:
    """What rank `rank` is told where rank 1 has another option."""
    config = small_run()
    if rank == 1:
        config = replace(config, **DIFFERENCES[name])  # type: ignore[arg-type]
        if name == "number of evaluation.sets":
            config = replace(config, evaluation=replace(config.evaluation, sets=["att"]))
    try:
        train(config, folder)
    except ValueError as error:
        return str(error)
    return "trained"


@pytest.mark.parametrize("name", DIFFERENCES)
def test_another_option_on_one_rank_is_named(
    run_ranks: RunRanks, tmp_path: Path, name: str
) -> None:
    said = run_ranks(refused, 2, name, tmp_path / "run")
    assert said[0] == said[1]
    assert f"{name} is " in said[0]
    assert "on rank 0 but " in said[0]
    assert not (tmp_path / "run").exists()


def other_code(rank: int) -> str:
    facts = of_run(small_run()) | ({"facescale": "code 0"} if rank == 2 else {})
    try:
        check_same(world_group(), facts)
    except ValueError as error:
        return str(error)
    return ""


def test_another_version_of_the_code_is_named_with_its_ranks(run_ranks: RunRanks) -> None:
    for said in run_ranks(other_code, 3):
        assert "facescale is code " in said
        assert " on rank 0, 1 but code 0 on rank 2" in said


def other_paths(rank: int) -> str:
    data = DataConfig(path=f"/mnt/{rank}/faces", threads=1 + rank)
    check_same(world_group(), of_run(small_run(data=data)))
    return "same"


def refused_data(rank: int, folder: Path, other: dict[str, int] | None) -> str:
    """What rank `rank` is told where rank 1 has other data, or none."""
    if rank == 1 and other is None:
        folder /= "missing"
    elif rank == 1 and other is not None:
        folder = write_people(folder.with_name("other"), other)
    try:
        train(small_run(data=DataConfig(path=str(folder), threads=1)), folder.parent / "run")
    except (ValueError, OSError) as error:
        return str(error)
    return "trained"


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"p0": 2, "p1": 2, "p2": 1}, "number of classes in the data is 2 on rank 0 but 3 on rank"),
        ({"p0": 2, "p1": 3}, "number of images in the data is 4 on rank 0 but 5 on rank 1"),
        ({"p0": 2, "z9": 2}, "digest of the people in the data is "),
        (None, "missing does not exist"),
    ],
)
def test_other_data_on_one_rank_is_named_by_all(
    run_ranks: RunRanks, tmp_path: Path, other: dict[str, int] | None, said: str
) -> None:
    write_people(tmp_path / "data", {"p0": 2, "p1": 2})
    for told in run_ranks(refused_data, 2, tmp_path / "data", other):
        assert said in told
    assert not (tmp_path / "run").exists()


def test_hosts_may_keep_equal_data_in_different_places(run_ranks: RunRanks) -> None:
    assert run_ranks(other_paths, 2) == ["same", "same"]
