"""A checkpoint of any number of ranks and shards goes on with any other."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import facescale
from conftest import RunRanks
from facescale.checkpoint import tensors
from facescale.checkpoint.folder import Part, checkpoints, damage, save
from facescale.checkpoint.record import Run
from facescale.config import HeadConfig, MarginConfig, OptimConfig, ScheduleConfig, TrainConfig
from facescale.distributed import Group, world_group
from facescale.training import build, resume
from runs import CPU, losses, small_run

CLASSES, DIM = 37, 6
WORLDS = [(1, 1, 4), (2, 1, 2), (2, 2, 3), (3, 3, 4), (4, 2, 4), (4, 4, 1)]
"""Ranks and shards that write, ranks that read into each possible number of shards."""
RUN = Run(
    step=7,
    position=56,
    skipped=0,
    seed=0,
    scaler={},
    people=None,
    backbone={},
    optimizer="SGD",
)


def table() -> Tensor:
    """Rows that say which class they are."""
    return torch.arange(CLASSES * 2 * DIM).view(CLASSES, 2, DIM).float()


def parts(shards: int) -> tuple[nn.Module, torch.optim.Optimizer, facescale.MarginHead]:
    backbone = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    head = facescale.MarginHead(CLASSES, DIM, shards=shards)
    return backbone, torch.optim.SGD(backbone.parameters(), momentum=0.9), head


def write(rank: int, folder: Path, shards: int) -> None:
    backbone, optimizer, head = parts(shards)
    classes = head.centres.rows
    head.centres.table.copy_(table()[classes.start : classes.stop])
    part = Part(
        shared=tensors.shared_tensors(backbone, optimizer, head),
        own={"statistics": torch.full((4,), float(rank))},
        centres=head.centres.table,
        first=classes.start if head.mesh.replicate.rank == 0 else None,
        finite=True,
    )
    save(folder, RUN, part, world=world_group(), keep=1)


def read(rank: int, folder: Path, writers: int) -> None:
    tensors.PIECE_ROWS = 5
    size = world_group().size
    for shards in (n for n in range(1, size + 1) if size % n == 0):
        backbone, optimizer, head = parts(shards)
        tensors.read_shared_(folder, backbone, optimizer, head)
        classes = head.centres.rows
        tensors.read_rows_(folder, classes.start, head.centres.table)
        assert torch.equal(head.centres.table, table()[classes.start : classes.stop])
        if size == writers:
            own = tensors.read_own(folder, rank, "statistics", torch.empty(4))
            assert own.tolist() == [rank] * 4


@pytest.mark.parametrize(("ranks", "shards", "readers"), WORLDS)
def test_every_row_lands_where_it_belongs(
    run_ranks: RunRanks, tmp_path: Path, ranks: int, shards: int, readers: int
) -> None:
    run_ranks(write, ranks, tmp_path, shards)
    folder = tmp_path / "step-00000007"
    assert damage(folder, Group()) is None
    assert tensors.num_centres(folder) == CLASSES
    for classes in (range(1), range(4, 23), range(CLASSES)):
        assert torch.equal(tensors.read_centres(folder, classes), table()[classes])
    run_ranks(read, readers, folder, ranks)


def leg(rank: int, folder: Path, steps: int, changes: dict[str, Any]) -> list[float]:
    """Some steps of the run in `folder` on these ranks, from its last checkpoint to the next."""
    state = build(small_run(**changes), CPU)
    saved = checkpoints(folder / "checkpoints")
    if saved:
        resume.restore_(state, saved[-1])
    shares = losses(state, steps)
    resume.save(state, folder)
    return shares


RECIPES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "sgd": ({}, {}),
    "adamw, curricular, subcentres": (
        {"subcentres": 2, "margin": MarginConfig(name="curricularface"), "lr_factor": 0.1},
        {"head_name": "adamw"},
    ),
}
"""Options of head and optimizer that have something to keep."""


def float64_run(shards: int, recipe: str) -> dict[str, Any]:
    """At a rate at which rounding does not grow from step to step: BatchNorm sees 7 samples."""
    head, optim = RECIPES[recipe]
    train = TrainConfig(global_batch_size=7, steps=5, precision="float64", sync_batchnorm=True)
    chosen = OptimConfig(lr=0.005, schedule=ScheduleConfig(kind="step"), **optim)
    return {"train": train, "optim": chosen, "head": HeadConfig(shards=shards, **head)}


@pytest.mark.usefixtures("tiny_y1")
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_run_that_moves_between_ranks_equals_one_that_never_stopped(
    run_ranks: RunRanks, tmp_path: Path, recipe: str
) -> None:
    (straight,) = run_ranks(leg, 1, tmp_path / "straight", 5, float64_run(1, recipe))
    moved = []
    for ranks, shards in [(1, 1), (2, 2), (4, 2), (3, 3), (1, 1)]:
        answers = run_ranks(leg, ranks, tmp_path / "moved", 1, float64_run(shards, recipe))
        moved.append(sum(shares[0] for shares in answers))
    # Sums over samples in another order, from 1e-16 on through five steps of a network.
    assert moved == pytest.approx(straight, rel=0, abs=1e-9)
    one, other = (final_state(tmp_path / name, recipe) for name in ("straight", "moved"))
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, rtol=0, atol=1e-9, msg=name)


def final_state(folder: Path, recipe: str) -> dict[str, Tensor]:
    """Weights, momentum, BatchNorm statistics and class centres of the last checkpoint."""
    state = build(small_run(**float64_run(1, recipe)), CPU)
    path = checkpoints(folder / "checkpoints")[-1]
    resume.restore_(state, path)
    assert (state.step, state.position) == (5, 35)
    momenta = {
        f"momentum of {name}": state.optimizer.state[p]["momentum_buffer"]
        for name, p in state.backbone.named_parameters()
        if p.requires_grad
    }
    centres = tensors.read_centres(path, range(len(state.head.centres)))
    kept = {**momenta, "centres": centres, "counts": state.head.centres.counts}
    buffers = {name: kept for name, kept in state.head.named_buffers() if "margin" in name}
    return {**state.backbone.state_dict(), **kept, **buffers}
