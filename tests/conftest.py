"""Fixtures of all tests: several ranks on one machine, one thread each."""

import gc
import importlib
import multiprocessing
import os
import pickle
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from hypothesis import settings
from torch import nn

from facescale.backbones import registry
from facescale.backbones.convolutional import assemble
from facescale.plan import costs

# Processes that tests start have one thread, too, and threads that wait leave the core to others.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# A forked child inherits no worker threads: a parent that has used several would hang it.
torch.set_num_threads(1)

# The same examples every time, lest one commit passes today and fails tomorrow; to look for new
# ones: pytest --hypothesis-profile default.
settings.register_profile("repeatable", derandomize=True)
settings.load_profile("repeatable")

RunRanks = Callable[..., list[Any]]


def pytest_configure() -> None:
    """No search for garbage among the objects of imports and collection: a tenth of all time.

    Here, because processes of tests import this module, too.
    """
    gc.disable()


def pytest_collection_finish() -> None:
    """What there is when the first test begins stays until the end."""
    gc.collect()
    gc.freeze()
    gc.enable()


def import_for_ddp() -> None:
    """Import what DDP imports at its first use: a second once, not in each forked rank."""
    importlib.import_module("torch._dynamo")


def _rank_main(
    work: Callable[..., Any], args: tuple[Any, ...], rank: int, size: int, folder: Path
) -> None:
    torch.set_num_threads(1)  # whatever an earlier test of the process has left
    outcome = "not joined"
    try:
        store = dist.FileStore(str(folder / "store"), size)  # type: ignore[attr-defined]
        dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
        outcome = "failed"
        answer = ("done", work(rank, *args))
        dist.destroy_process_group()
    except BaseException:
        answer = (outcome, traceback.format_exc())
    partial = folder / f".answer-{rank}"
    partial.write_bytes(pickle.dumps(answer))
    partial.replace(folder / f"answer-{rank}")


def _tiny_trunk(eps: float) -> dict[str, nn.Module]:
    """No bias: `build` would leave it to torch's random state."""
    conv, norm = nn.Conv2d(3, 512, 1, bias=False), nn.BatchNorm2d(512, eps=eps)
    return {"pool": nn.AvgPool2d(16), "conv": conv, "bn": norm, "act": nn.PReLU(512)}


def tiny_builder() -> Any:
    """Builds network y1 with one layer of trunk: a step takes 10 ms."""
    return partial(
        assemble,
        "mobilefacenet",
        _tiny_trunk,
        512,
        embedding_dim=128,
        neck="GDC",
        family="mxnet",
        dropout=None,
        image_size=112,
        generator=None,
    )


@pytest.fixture
def tiny_y1(monkeypatch: pytest.MonkeyPatch) -> None:
    """Network y1 with one layer of trunk, in this process and its forks."""
    monkeypatch.setitem(registry._BUILDERS, "y1", tiny_builder())


_SHORT: dict[str, dict[str, Any]] = {
    **{name: {"units": (1, 1, 1, 2)} for name in ("r18_half", "r18", "r50", "r100", "ir_se_50")},
    "y1": {"blocks": (1, 1, 1, 1)},
    "mbf": {"blocks": (2, 1, 1, 1)},
    **{name: {"depth": 2} for name in ("vit_t", "vit_b_dp005_mask_005")},
}
_WHOLE = dict(registry._BUILDERS)


@contextmanager
def shortened() -> Iterator[None]:
    """Inside the block, networks have every kind of block that they consist of, but few of each."""
    short = {
        name: partial(registry._BUILDERS[name], **few)
        for name, few in _SHORT.items()
        if registry._BUILDERS[name] is _WHOLE[name]  # another fixture may have put in its own
    }
    costs._walk.cache_clear()
    with mock.patch.dict(registry._BUILDERS, short):
        yield
    costs._walk.cache_clear()


@pytest.fixture
def short_networks() -> Iterator[None]:
    """Networks of few blocks, in this process and its forks."""
    with shortened():
        yield


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """Sets the number of threads for a test; others fork, which a parent of one thread bears."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def run_ranks(tmp_path: Path) -> RunRanks:
    """`run_ranks(work, size, *args)`: call work(rank, *args) in `size` processes with gloo.

    Returns what each rank returned; raises with the traceback of the first rank that failed.
    """
    calls = iter(range(1000))

    def run(work: Callable[..., Any], size: int, *args: Any, deadline_s: float = 120) -> list[Any]:
        folder = tmp_path / f"ranks-{next(calls)}"
        folder.mkdir()
        return ranks_in(folder, work, size, *args, deadline_s=deadline_s)

    return run


def ranks_in(
    folder: Path, work: Callable[..., Any], size: int, *args: Any, deadline_s: float = 120
) -> list[Any]:
    """`run_ranks` in an empty folder, for a process that has no fixtures."""
    import_for_ddp()
    for attempt in range(JOINS):
        made = folder / f"try-{attempt}"
        made.mkdir()
        answers = _answers(made, work, size, *args, deadline_s=deadline_s)
        if "not joined" not in [outcome for outcome, _ in answers]:
            break
    for rank, (outcome, answer) in enumerate(answers):
        if outcome not in ("done", "stuck"):
            pytest.fail(f"rank {rank} of {size} has {outcome}:\n{answer}")
    if stuck := [rank for rank, (outcome, _) in enumerate(answers) if outcome == "stuck"]:
        pytest.fail(f"ranks {stuck} of {size} did not end within {deadline_s} s")
    return [answer for _, answer in answers]


JOINS = 3
"""Gloo fails now and then to connect ranks on a busy machine ("connectFullMesh failed")."""


def _answers(
    folder: Path, work: Callable[..., Any], size: int, *args: Any, deadline_s: float
) -> list[tuple[str, Any]]:
    """How each rank ended, and what it returned, or its traceback."""
    context = multiprocessing.get_context("fork")
    ranks = [
        context.Process(target=_rank_main, args=(work, args, rank, size, folder))
        for rank in range(size)
    ]
    for process in ranks:
        process.start()
    until = time.monotonic() + deadline_s
    while time.monotonic() < until and (alive := [p for p in ranks if p.is_alive()]):
        wait([process.sentinel for process in alive], timeout=1.0)
        if "not joined" in [_answer(folder, rank)[0] for rank in range(size)]:
            break  # the others would wait for it
    stuck = [process.is_alive() for process in ranks]
    for process in ranks:
        process.kill()
    answers = [_answer(folder, rank) for rank in range(size)]
    return [
        ("stuck", "") if is_stuck and answer == NO_ANSWER else answer
        for answer, is_stuck in zip(answers, stuck, strict=True)
    ]


NO_ANSWER = ("failed", "no answer")


def _answer(folder: Path, rank: int) -> tuple[str, Any]:
    path = folder / f"answer-{rank}"
    found: tuple[str, Any] = pickle.loads(path.read_bytes()) if path.exists() else NO_ANSWER
    return found
