"""Small runs for tests: configs of seconds, ranks that fork, and comparisons to the bit."""

import os
import time
from collections.abc import Callable
from datetime import timedelta
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from PIL import Image
from safetensors.torch import load_file

from conftest import import_for_ddp
from facescale.checkpoint import folder as checkpoint
from facescale.checkpoint import tensors
from facescale.config import (
    BackboneConfig,
    CheckpointConfig,
    Config,
    DataConfig,
    HeadConfig,
    OptimConfig,
    ScheduleConfig,
    TrainConfig,
)
from facescale.training import TrainState, train, train_step

CPU = torch.device("cpu")


def small_run(**changes: Any) -> Config:
    """Synthetic faces, the smallest network: a step takes a fraction of a second."""
    sections: dict[str, Any] = {
        "data": DataConfig(path="synthetic", num_classes=50, num_images=64, threads=1),
        "backbone": BackboneConfig(name="y1", embedding_dim=16),
        "head": HeadConfig(sample_rate=0.5),
        "optim": OptimConfig(lr=0.02, schedule=ScheduleConfig(kind="cosine", warmup=1)),
        "train": TrainConfig(batch_size=4, steps=4),
        "checkpoint": CheckpointConfig(every=2),
        "device": "cpu",
        "log_every": 1,
    }
    return Config(**(sections | changes))


def write_people(folder: Path, images: dict[str, int]) -> Path:
    """A folder of so many images a person."""
    random = np.random.default_rng(0)
    for name, count in images.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = random.integers(0, 256, (112, 112, 3), np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


def losses(state: TrainState, steps: int) -> list[float]:
    with state.loader() as loader:
        return [train_step(state, next(loader)).item() for _ in range(steps)]


def assert_equal_states(one: TrainState, other: TrainState) -> None:
    for (name, mine), theirs in zip(
        one.backbone.state_dict().items(), other.backbone.state_dict().values(), strict=True
    ):
        assert torch.equal(mine, theirs), name
    assert torch.equal(one.head.centres.table, other.head.centres.table)
    for mine, theirs in zip(one.backbone.parameters(), other.backbone.parameters(), strict=True):
        if mine.requires_grad:
            a, b = one.optimizer.state[mine], other.optimizer.state[theirs]
            assert torch.equal(a["momentum_buffer"], b["momentum_buffer"])


Hurt = Callable[[int], None]
"""What happens to a rank before it trains."""


def run_of(steps: int, **train: Any) -> Config:
    """Its learning rate is constant, so that a longer run begins like a shorter one."""
    return small_run(
        optim=OptimConfig(lr=0.02, schedule=ScheduleConfig(kind="step")),
        train=TrainConfig(global_batch_size=4, steps=steps, **train),
        checkpoint=CheckpointConfig(every=2),
    )


def rank_main(rank: int, size: int, store: Path, config: Config, output: Path, hurt: Hurt) -> None:
    torch.set_num_threads(1)  # whatever an earlier test of the process has left
    where = dist.FileStore(str(store), size)  # type: ignore[attr-defined]
    wait = timedelta(seconds=30)
    dist.init_process_group("gloo", store=where, rank=rank, world_size=size, timeout=wait)
    hurt(rank)
    summary = train(config, output, resume=True)
    os._exit(128 + summary.signal if summary.signal else 0)


def start(
    config: Config, output: Path, size: int, hurt: Hurt = lambda _: None
) -> list[BaseProcess]:
    """The run on `size` forked ranks, as torchrun would start it."""
    import_for_ddp()
    store = output.with_name(f"store-{time.monotonic_ns()}")
    ranks: list[BaseProcess] = [
        get_context("fork").Process(
            target=rank_main, args=(rank, size, store, config, output, hurt)
        )
        for rank in range(size)
    ]
    for rank in ranks:
        rank.start()
    return ranks


def end(ranks: list[BaseProcess]) -> list[int | None]:
    """Exit statuses; what has not ended within two minutes never will, on a busy machine too."""
    until = time.monotonic() + 120
    for rank in ranks:
        rank.join(max(0.0, until - time.monotonic()))
    statuses = [rank.exitcode for rank in ranks]
    for rank in ranks:
        rank.kill()
    assert None not in statuses, "a rank hangs"
    return statuses


def assert_same_model(one: Path, other: Path) -> None:
    """The last checkpoints and models of two runs, to the bit."""
    mine, theirs = (load_file(run / "model.safetensors") for run in (one, other))
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    tables = []
    for run in (one, other):
        path = checkpoint.checkpoints(run / "checkpoints")[-1]
        tables.append((path.name, tensors.read_centres(path, range(50))))
    assert tables[0][0] == tables[1][0]
    assert torch.equal(tables[0][1], tables[1][1])
