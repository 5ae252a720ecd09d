"""All that a run needs to go on, written whole or not at all.

A checkpoint is a folder `step-00000100`: tensors, each rank its own part, and `run.json` for the
numbers. It is written under another name and renamed when all ranks are done, so that a folder of
that name is complete.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch

from facescale.backbones import Backbone
from facescale.distributed import Group
from facescale.head import MarginHead
from facescale.training import tensors
from facescale.training.norms import average_statistics_, read_statistics, write_statistics_

FORMAT = 2


def save(
    folder: Path,
    backbone: Backbone,
    optimizer: torch.optim.Optimizer,
    head: MarginHead,
    numbers: dict[str, Any],
    *,
    world: Group,
    keep: int,
) -> Path:
    """Write `folder/step-N` for N = numbers["step"], then drop all but the last `keep`.

    Changes nothing of what it saves. A collective: every rank calls it. Returns the path of the
    new checkpoint.
    """
    final = folder / f"step-{numbers['step']:08d}"
    partial = folder / f".{final.name}.partial"
    if world.rank == 0:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    world.barrier()
    own = read_statistics(backbone)
    average_statistics_(backbone, world)
    tensors.write(partial, backbone, optimizer, head, own)
    write_statistics_(backbone, own)
    if world.rank == 0:
        numbers = {
            "format": FORMAT,
            "ranks": world.size,
            "num_classes": head.num_classes,
            "backbone": backbone.spec,
            **numbers,
        }
        (partial / "run.json").write_text(json.dumps(numbers, indent=1))
        for path in partial.iterdir():
            _sync(path)
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        _sync(folder)
        for old in checkpoints(folder)[:-keep]:
            shutil.rmtree(old)
    world.barrier()
    return final


def _sync(path: Path) -> None:
    """Have the disk hold `path` before anything is built on it."""
    handle = os.open(path, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)


def checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    return sorted(path for path in folder.glob("step-*") if (path / "run.json").is_file())


def read_numbers(path: Path) -> dict[str, Any]:
    """The numbers of the checkpoint at `path`; ValueError where it is of another format."""
    numbers: dict[str, Any] = json.loads((path / "run.json").read_text())
    if numbers.get("format") != FORMAT:
        raise ValueError(f"{path}: format {numbers.get('format')}, this version reads {FORMAT}")
    return numbers


def load(
    path: Path,
    backbone: Backbone,
    optimizer: torch.optim.Optimizer,
    head: MarginHead,
    *,
    world: Group,
) -> dict[str, Any]:
    """Fill backbone, optimizer and head in place from a checkpoint; returns its numbers.

    Any number of ranks and of shards may have written it.

    Raises:
        ValueError: The checkpoint is of another format, backbone or number of classes.
    """
    numbers = read_numbers(path)
    if numbers["num_classes"] != head.num_classes:
        raise ValueError(
            f"{path}: has {numbers['num_classes']} classes, but this run has {head.num_classes}; "
            "resume with the data that the run began with"
        )
    if numbers["backbone"] != backbone.spec:
        raise ValueError(
            f"{path}: its backbone is {numbers['backbone']}, but this run's is "
            f"{backbone.spec}; resume with the config that the run began with"
        )
    same_ranks = numbers["ranks"] == world.size
    tensors.read(path, backbone, optimizer, head, same_ranks=same_ranks)
    return numbers
