"""Collectives and DDP by the names of torch 2.11 and of torch 2.13."""

import pytest
import torch
import torch.distributed as dist
from torch import nn

from conftest import RunRanks
from facescale.distributed import replicate, world_group

NEW_NAMES = ("all_gather_single", "reduce_scatter_single")


def collectives(rank: int, old: bool) -> tuple[list[float], list[float]]:
    if old:  # as torch 2.11 is: this process ends with the test
        for name in NEW_NAMES:
            if hasattr(dist, name):
                delattr(dist, name)
        assert hasattr(dist, "all_gather_into_tensor")
    world = world_group()
    gathered = world.all_gather(torch.tensor([float(rank)]))
    summed = world.reduce_scatter(torch.tensor([[1.0 + rank], [10.0 + rank]]))
    return gathered.flatten().tolist(), summed.tolist()


@pytest.mark.parametrize("old", [False, True], ids=["new names", "old names"])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_collectives_run_by_the_names_that_torch_has(run_ranks: RunRanks, old: bool) -> None:
    if not hasattr(dist, NEW_NAMES[0]) and not old:
        pytest.skip("this torch has the old names only")
    assert run_ranks(collectives, 2, old) == [([0.0, 1.0], [3.0]), ([0.0, 1.0], [21.0])]


def told(rank: int, failing: int | None) -> list[str] | str:
    """What the block told the other ranks, or the error."""
    try:
        with world_group().all_or_none() as said:
            if rank == failing:
                raise FileNotFoundError("no such file")
            said.append(f"rank {rank}")
    except OSError as error:
        return f"{type(error).__name__}: {error}"
    return said


def test_a_block_tells_all_ranks_its_answer_or_its_failure(run_ranks: RunRanks) -> None:
    assert run_ranks(told, 3, None) == [["rank 0", "rank 1", "rank 2"]] * 3
    assert run_ranks(told, 3, 1) == ["FileNotFoundError: no such file"] * 3


def running_means(rank: int) -> list[float]:
    """The running mean after the start, and after a batch of this rank's own."""
    norm = nn.BatchNorm1d(1, momentum=1.0)
    assert norm.running_mean is not None
    norm.running_mean.fill_(float(rank))
    copies = replicate(norm, world_group())
    start = norm.running_mean.item()
    for _ in range(2):
        copies(torch.full((2, 1), 5.0 + rank)).sum().backward()
    return [start, norm.running_mean.item()]


def test_buffers_start_alike_and_stay_each_ranks_own(run_ranks: RunRanks) -> None:
    assert run_ranks(running_means, 2) == [[0.0, 5.0], [0.0, 6.0]]
