"""Ranks that torchrun starts again find each other, and not those that were killed."""

import os
import time
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from typing import Any

import pytest
import torch
import torch.distributed as dist

from facescale.distributed import processes, world_group


def rank_main(rank: int, port: int, late_s: float, killed: bool) -> None:
    """A rank as torchrun starts it, with the agent's store at `port`; ends with 0 if all went."""
    os.environ.update(
        {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    )
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"
    time.sleep(late_s)
    with processes("cpu", timeout_s=20):
        total = world_group().all_reduce_(torch.tensor([rank + 1.0]))
        if killed:
            os._exit(9)
    os._exit(0 if total.item() == 3.0 else 1)


def attempt(port: int, late_s: float, killed: bool = False) -> list[int | None]:
    """Exit statuses of two ranks, the second of which comes later."""
    ranks: list[BaseProcess] = [
        get_context("fork").Process(target=rank_main, args=(rank, port, rank * late_s, killed))
        for rank in range(2)
    ]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(40)
    statuses = [rank.exitcode for rank in ranks]
    for rank in ranks:
        rank.kill()
    return statuses


@pytest.fixture
def store() -> Any:
    """A store as torchrun's agent keeps it for all restarts."""
    return dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]


@pytest.mark.parametrize("late_s", [0.0, 1.0])
def test_a_restart_in_the_same_store_does_not_meet_the_dead(store: Any, late_s: float) -> None:
    assert attempt(store.port, 0.0, killed=True) == [9, 9]
    for _ in range(2):
        assert attempt(store.port, late_s) == [0, 0]


def test_ranks_that_never_come_are_said_to_be_missing(
    monkeypatch: pytest.MonkeyPatch, store: Any
) -> None:
    environment = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    environment |= {"MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConnectionError, match=r"out of reach.*name/1"), processes("cpu", 1):
        pass
    store.set("name/1", "of a rank that was killed")
    with pytest.raises(ConnectionError, match="not all of the 2 ranks"), processes("cpu", 1):
        pass
