"""A run that arcface_torch has begun, continued from its `checkpoint_gpu_0.pt`, `_1.pt`, ....

Each file is a dictionary: "state_dict_backbone", alike in all files; "state_dict_softmax_fc", whose
"weight" (k, dim) are the class centres of that rank, in the order of ranks; "state_optimizer", of
torch's SGD or AdamW, whose first group are the network's parameters in the order of its state dict
and whose second group are the class centres; "epoch" and "global_step"; and the state of the
schedule, which is left out. Tensors and plain values alone are read.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from facescale.checkpoint.tensors import PIECE_ROWS, SLOTS
from facescale.head.centres import ClassCentres
from facescale.models.torchfile import is_plain, read_plain, state_dict_in
from facescale.models.weights import momenta_with_our_names, take_foreign_
from facescale.training.foreign_momenta import Slots, give_, read_slots
from facescale.training.remaining import plan_remaining_
from facescale.training.state import TrainState

FIRST = "checkpoint_gpu_0.pt"
_FILES = "checkpoint_gpu_*.pt"
NONE = ": the file has none"
_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")
"""What a network's state dict has beside parameters."""


@dataclass(frozen=True)
class _Rank:
    """What is read of a file."""

    weights: Mapping[str, Tensor]
    """Of the network, by the names in the file."""
    centres: Tensor
    """(k, dim)."""
    step: int
    epoch: int
    """Number of finished ones; 0 if the file has none."""
    optimizer: object
    """Its state, unchecked."""


def is_theirs(path: Path) -> bool:
    """Whether a folder holds such files; ValueError for one of the files itself."""
    if path.match(_FILES) and path.is_file():
        raise ValueError(f"{path} has a part of the class centres; give the folder of all parts")
    return (path / FIRST).is_file()


def begin_from_(state: TrainState, folder: Path) -> list[str]:
    """Take over backbone, class centres, momenta and step.

    Returns:
        A line with the step, and one each for momenta of the backbone and of the class centres that
        do not fit this run and begin anew.

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
    first, last = 0, None
    notes: dict[str, str] = {}
    for path, saved in _ranks(folder):
        if path.name == FIRST:
            take_foreign_(state.backbone, saved.weights, path)
        if saved.centres.shape[1] != centres.dim:
            raise ValueError(
                f"{path}: class centres of {saved.centres.shape[1]} numbers, not {centres.dim}"
            )
        if path.name == FIRST and (said := _give_momenta_(state, saved)):
            notes["backbone"] = f"{path}: momenta of the backbone begin anew{said}"
        slots, said = _momenta_of_centres(state, saved)
        if said:
            notes.setdefault("centres", f"{path}: momenta of the class centres begin anew{said}")
        _put_(centres, first, saved.centres, slots)
        first, last = first + len(saved.centres), saved
    if first != state.head.num_classes:
        raise ValueError(
            f"{folder}: has {first} classes in all files, but the data has "
            f"{state.head.num_classes}; continue with the data that the run began with, or take "
            f"over the backbone alone: backbone.weights {folder / FIRST}"
        )
    assert last is not None
    return [_continue_at_(state, folder, last.step, last.epoch), *notes.values()]


def _continue_at_(state: TrainState, folder: Path, step: int, epoch: int) -> str:
    """Set step and position; what to say of them. ValueError where no step is left."""
    state.step = state.head.num_steps = step
    state.position, seen = step * state.global_batch, epoch * len(state.dataset)
    # It leaves out less than a batch at the end of each epoch
    other_batch = epoch > 0 and abs(seen - state.position) >= epoch * state.global_batch
    if other_batch:
        state.position = seen
        plan_remaining_(state)
    if step >= state.num_steps:
        raise ValueError(
            f"{folder}: has finished {step} steps, and this run has {state.num_steps}; raise "
            "train.epochs or train.steps"
        )
    said = f"{folder}: a run of arcface_torch, continued at step {step}"
    return f"{said}, epoch {epoch}; its steps had another global batch" if other_batch else said


def _ranks(folder: Path) -> Iterator[tuple[Path, _Rank]]:
    """The files of all ranks, in order; ValueError where one is missing or of another step."""
    step = None
    count = sum(1 for _ in folder.glob(_FILES))
    for rank in range(count):
        path = folder / f"checkpoint_gpu_{rank}.pt"
        if not path.is_file():
            raise ValueError(f"{folder} has {count} {_FILES}, but no {path.name}")
        saved = _read(path)
        step = saved.step if step is None else step
        if saved.step != step:
            raise ValueError(
                f"{path} has finished {saved.step} steps, but {FIRST} {step}; keep the files of "
                "one save in the folder"
            )
        yield path, saved


def _read(path: Path) -> _Rank:
    """The parts of a file, all but the optimizer's checked."""
    found: Any = read_plain(path)
    try:
        centres, step = found["state_dict_softmax_fc"]["weight"], found["global_step"]
        epoch, optimizer = found.get("epoch", 0), found.get("state_optimizer")
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise ValueError(f"{path} is not a checkpoint of arcface_torch: no {error}") from error
    whole = all(type(number) is int and 0 <= number < 1 << 40 for number in (step, epoch))
    if not whole or not is_plain(centres) or centres.ndim != 2:
        raise ValueError(f"{path} is not a checkpoint of arcface_torch")
    if not centres.is_floating_point() or not centres.isfinite().all():
        raise ValueError(f"{path} has class centres that are not finite numbers")
    return _Rank(state_dict_in(found, path), centres, step, epoch, optimizer)


def _give_momenta_(state: TrainState, saved: _Rank) -> str:
    """Take over the momenta of the backbone; else, what to say of those that are not."""
    own, batches = state.optimizer, state.config.train.accumulate
    keeps = own.param_groups[0].get("momentum", 1.0) > 0.0
    wanted = SLOTS[type(own).__name__] if keeps else ()
    names = [name for name in saved.weights if not name.endswith(_BUFFERS)]
    try:
        shapes = [saved.weights[name].shape for name in names]
        slots = read_slots(saved.optimizer, 0, shapes, wanted, batches)
    except ValueError as error:
        return f": {error}"
    converted: dict[str, Slots] = {}
    for key in wanted:
        theirs = {name: kept[key] for name, kept in zip(names, slots, strict=True) if kept}
        for name, value in momenta_with_our_names(theirs, saved.weights).items():
            converted.setdefault(name, {})[key] = value
    without = give_(own, state.backbone, converted) if wanted else []
    some = f" for {', '.join(without[:3])} ({len(without)} in all), which have none in the file"
    return (some if converted else NONE) if without else ""


def _momenta_of_centres(state: TrainState, saved: _Rank) -> tuple[Slots, str]:
    """What a rank's optimizer keeps for its class centres; else nothing, and what to say."""
    rule, batches = state.head.rule, state.config.train.accumulate
    wanted = SLOTS[type(rule).__name__] if rule.parts > 1 else ()
    try:
        slots = read_slots(saved.optimizer, 1, [saved.centres.shape], wanted, batches)[0]
    except ValueError as error:
        return {}, f": {error}"
    return slots, NONE if wanted and not slots else ""


def _put_(centres: ClassCentres, first: int, weight: Tensor, slots: Slots) -> None:
    """Store those of the class centres [first, first + k) of all that are of this shard."""
    begin, end = max(first, centres.rows.start), min(first + len(weight), centres.rows.stop)
    parts = [weight, *(value for key, value in slots.items() if key != "step")]
    step = int(slots.get("step", 0))
    for start in range(begin, end, PIECE_ROWS):
        stop = min(start + PIECE_ROWS, end)
        numbers = [part[start - first : stop - first].to(centres.format.numbers) for part in parts]
        counts = torch.full((stop - start,), step, dtype=torch.int32)
        rows = torch.arange(start, stop) - centres.rows.start
        centres.put_(rows, torch.stack(numbers, dim=1), counts)
