"""Collectives and DDP by the names of torch 2.11 and of torch 2.13."""

import os
from functools import partial
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch import nn

from conftest import RunRanks
from facescale import rendezvous
from facescale.distributed import processes, replicate, world_group

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


@pytest.fixture
def on_a_card(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Any]]:
    """A rank of two with a CUDA device, as far as `processes` can tell; what it calls."""
    calls: dict[str, list[Any]] = {"backend": [], "end": []}
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in rendezvous.NCCL_SETTINGS:
        monkeypatch.setenv(name, "")  # so that the old value comes back
        monkeypatch.delenv(name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(dist, "rendezvous", lambda *_, **__: iter([(mock.Mock(), 0, 2)]))
    monkeypatch.setattr(rendezvous, "_fresh", lambda store, *_: store)
    joined = iter([False, True])  # before and after
    monkeypatch.setattr(dist, "is_initialized", lambda: next(joined))
    monkeypatch.setattr(dist, "get_backend_config", lambda: "cpu:gloo,cuda:nccl")
    start = lambda backend, **_: calls["backend"].append(backend)  # noqa: E731
    monkeypatch.setattr(dist, "init_process_group", start)
    abort, destroy = (partial(calls["end"].append, name) for name in ("abort", "destroy"))
    monkeypatch.setattr(dist.distributed_c10d, "_abort_process_group", abort)
    monkeypatch.setattr(dist, "destroy_process_group", destroy)
    return calls


def test_a_lost_peer_under_nccl_is_one_line_and_nobody_waits_for_it(
    on_a_card: dict[str, list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_NCCL_DUMP_ON_TIMEOUT", "1")  # the user's own choice stays
    said = "the other ranks are gone or out of reach .NCCL communicator was aborted on rank 0.*"
    with pytest.raises(ConnectionError, match=f"{said}--resume"), processes("cuda"):
        raise dist.DistBackendError("NCCL communicator was aborted on rank 0.\nstack")
    assert on_a_card == {"backend": ["cpu:gloo,cuda:nccl"], "end": ["abort"]}
    assert os.environ["TORCH_NCCL_ASYNC_ERROR_HANDLING"] == "2"
    assert os.environ["TORCH_NCCL_DUMP_ON_TIMEOUT"] == "1"


def test_a_run_that_ends_well_waits_for_the_others(on_a_card: dict[str, list[Any]]) -> None:
    with processes("cuda"):
        pass
    assert on_a_card["end"] == ["destroy"]


def test_a_mistake_of_one_rank_does_not_wait_for_the_others(
    on_a_card: dict[str, list[Any]],
) -> None:
    with pytest.raises(ValueError, match="a mistake"), processes("cuda"):
        raise ValueError("a mistake")
    assert on_a_card["end"] == ["abort"]


def test_more_ranks_than_cards_are_refused(
    on_a_card: dict[str, list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "2")
    message = "process 3 of this host, and torch sees 2 CUDA devices here; start 2 processes"
    with pytest.raises(ValueError, match=message), processes("cuda"):
        pass


def test_torch_has_what_ends_a_failed_group() -> None:
    assert hasattr(dist.distributed_c10d, "_abort_process_group")


def test_ranks_of_a_test_that_do_not_find_each_other_try_again(
    run_ranks: RunRanks, monkeypatch: pytest.MonkeyPatch
) -> None:
    join = dist.init_process_group

    def fails_at_first(*arguments: Any, **options: Any) -> None:
        if "try-0" in options["store"].path and options["rank"] == 1:
            raise RuntimeError("Gloo connectFullMesh failed")
        join(*arguments, **options)

    monkeypatch.setattr(dist, "init_process_group", fails_at_first)
    assert run_ranks(told, 2, None) == [["rank 0", "rank 1"]] * 2
