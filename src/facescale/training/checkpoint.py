"""All that a run needs to go on, written whole or not at all.

A checkpoint is a folder `step-00000100`: tensors by torch.distributed.checkpoint, each rank its own
part, and `run.json` for the numbers. It is written under another name and renamed when all ranks
are done, so that a folder of that name is complete.
"""

import json
import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load as read_tensors
from torch.distributed.checkpoint.state_dict_saver import save as write_tensors
from torch.distributed.tensor import DTensor, Replicate, Shard

from facescale.distributed import Group
from facescale.head import MarginHead

FORMAT = 1


def centre_table(head: MarginHead) -> Tensor:
    """Weights and momentum of all classes, (num_classes, 2, dim), wherever their rows lie."""
    table, mesh = head.centres.table, head.mesh.device_mesh
    if mesh is None:
        return table
    shape = torch.Size((head.num_classes, *table.shape[1:]))
    stride = (table.shape[1] * table.shape[2], table.shape[2], 1)
    return DTensor.from_local(
        table, mesh, [Replicate(), Shard(0)], run_check=False, shape=shape, stride=stride
    )


def _tensors(
    backbone: nn.Module, optimizer: torch.optim.Optimizer, head: MarginHead
) -> dict[str, Any]:
    model, optim = get_state_dict(backbone, optimizer)
    return {"backbone": model, "optimizer": optim, "centres": centre_table(head)}


def save(
    folder: Path,
    backbone: nn.Module,
    optimizer: torch.optim.Optimizer,
    head: MarginHead,
    numbers: dict[str, Any],
    *,
    world: Group,
    keep: int,
) -> Path:
    """Write `folder/step-N` for N = numbers["step"], then drop all but the last `keep`.

    A collective: every rank calls it. Returns the path of the new checkpoint.
    """
    final = folder / f"step-{numbers['step']:08d}"
    partial = folder / f".{final.name}.partial"
    if world.rank == 0:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    world.barrier()
    tensors = _tensors(backbone, optimizer, head)
    with _quiet():
        write_tensors(tensors, checkpoint_id=partial, no_dist=world.size == 1)
    if world.rank == 0:
        numbers = {"format": FORMAT, **numbers}
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


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's warning that one process alone is about to read or write."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        yield


def _sync(path: Path) -> None:
    """Have the disk hold `path` before anything is built on it."""
    handle = os.open(path, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)


def checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    return sorted(path for path in folder.glob("step-*") if (path / "run.json").is_file())


def load(
    path: Path,
    backbone: nn.Module,
    optimizer: torch.optim.Optimizer,
    head: MarginHead,
    *,
    world: Group,
) -> dict[str, Any]:
    """Fill backbone, optimizer and head in place from a checkpoint; returns its numbers.

    Raises:
        ValueError: The checkpoint is of another format, backbone or number of classes.
    """
    numbers: dict[str, Any] = json.loads((path / "run.json").read_text())
    if numbers.get("format") != FORMAT:
        raise ValueError(f"{path}: format {numbers.get('format')}, this version reads {FORMAT}")
    if numbers["num_classes"] != head.num_classes:
        raise ValueError(
            f"{path}: has {numbers['num_classes']} classes, but this run has {head.num_classes}; "
            "resume with the data that the run began with"
        )
    if numbers["backbone"] != getattr(backbone, "spec", None):
        raise ValueError(
            f"{path}: its backbone is {numbers['backbone']}, but this run's is "
            f"{getattr(backbone, 'spec', None)}; resume with the config that the run began with"
        )
    tensors = _tensors(backbone, optimizer, head)
    with _quiet():
        read_tensors(tensors, checkpoint_id=path, no_dist=world.size == 1)
    set_state_dict(
        backbone,
        optimizer,
        model_state_dict=tensors["backbone"],
        optim_state_dict=tensors["optimizer"],
    )
    return numbers
