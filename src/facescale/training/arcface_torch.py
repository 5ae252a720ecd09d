"""A run that arcface_torch has begun, continued from its `checkpoint_gpu_0.pt`, `_1.pt`, ....

Each file is a dictionary: "state_dict_backbone", alike in all files; "state_dict_softmax_fc", whose
"weight" (k, dim) are the class centres of that rank, in the order of ranks; "global_step"; and the
states of optimizer and schedule, which are left out. Tensors and plain values alone are read.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from facescale.models.torchfile import read_plain
from facescale.models.weights import load_weights_
from facescale.training.state import TrainState

FIRST = "checkpoint_gpu_0.pt"


def is_theirs(folder: Path) -> bool:
    """Whether a folder holds such files."""
    return (folder / FIRST).is_file()


def begin_from_(state: TrainState, folder: Path) -> None:
    """Take over backbone, class centres and step. The momenta begin anew.

    Raises:
        OSError: A file cannot be read.
        ValueError: A file is missing or damaged, or does not fit this run.
    """
    if (family := state.backbone.spec.get("family")) != "arcface_torch":
        raise ValueError(
            f"{folder}: was trained by arcface_torch, but this run's backbone is of family "
            f"{family}; set backbone.family arcface_torch"
        )
    centres = state.head.centres
    if centres.subcentres > 1:
        raise ValueError(f"{folder}: has one class centre of each identity; leave head.subcentres")
    load_weights_(state.backbone, folder / FIRST)
    first = step = 0
    for path in _files(folder):
        weight, step = _read(path)
        if weight.shape[1] != centres.dim:
            raise ValueError(
                f"{path}: class centres of {weight.shape[1]} numbers, not {centres.dim}"
            )
        begin, end = max(first, centres.rows.start), min(first + len(weight), centres.rows.stop)
        if begin < end:
            rows = torch.arange(begin, end) - centres.rows.start
            centres.put_(rows, weight[begin - first : end - first, None])
        first += len(weight)
    if first != state.head.num_classes:
        raise ValueError(
            f"{folder}: has {first} classes in all files, but the data has "
            f"{state.head.num_classes}; continue with the data that the run began with"
        )
    if step >= state.num_steps:
        raise ValueError(
            f"{folder}: has finished {step} steps, and this run has {state.num_steps}; raise "
            "train.epochs or train.steps"
        )
    state.step = state.head.num_steps = step
    state.position = step * state.global_batch


def _files(folder: Path) -> Iterator[Path]:
    """The files of all ranks, in order; ValueError where one is missing."""
    count = sum(1 for _ in folder.glob("checkpoint_gpu_*.pt"))
    for rank in range(count):
        path = folder / f"checkpoint_gpu_{rank}.pt"
        if not path.is_file():
            raise ValueError(f"{folder} has {count} checkpoint_gpu_*.pt, but no {path.name}")
        yield path


def _read(path: Path) -> tuple[Tensor, int]:
    """Class centres (k, dim) and number of steps in a file."""
    found: Any = read_plain(path)
    try:
        weight, step = found["state_dict_softmax_fc"]["weight"], found["global_step"]
    except (KeyError, TypeError, IndexError) as error:
        raise ValueError(f"{path} is not a checkpoint of arcface_torch: no {error}") from error
    whole = type(step) is int and 0 <= step < 1 << 40
    if not whole or not isinstance(weight, Tensor) or weight.ndim != 2:
        raise ValueError(f"{path} is not a checkpoint of arcface_torch")
    if not weight.is_floating_point() or not weight.isfinite().all():
        raise ValueError(f"{path} has class centres that are not finite numbers")
    return weight, step
