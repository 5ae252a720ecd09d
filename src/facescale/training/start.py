"""A new run that begins from another one's checkpoint, with the same people or others."""

from collections import Counter
from pathlib import Path

import torch
from torch import Tensor

from facescale.checkpoint import folder as checkpoint
from facescale.checkpoint import record, tensors
from facescale.config import StartConfig
from facescale.data.found import digest
from facescale.head.centres import ClassCentres
from facescale.training import arcface_torch
from facescale.training.agreement import check_same
from facescale.training.optim import fill_momenta_
from facescale.training.state import TrainState

NEW = -1
"""In place of an old label: a class that was not there."""
MAX_DIGITS = 19  # of a label


def begin_from_(state: TrainState, start: StartConfig) -> list[str]:
    """Take over backbone, optimizer and class centres of a checkpoint; the steps begin at 0.

    A class in both lists of people keeps weight and momentum, a new one starts at random.

    Returns:
        Lines to be shown, of what is not taken over.

    Raises:
        FileNotFoundError, ValueError: A file is missing, damaged, or does not fit.
    """
    assert start.checkpoint is not None
    if arcface_torch.is_theirs(Path(start.checkpoint)):
        if start.classes or start.names:
            raise ValueError("start.classes and start.names need a checkpoint of facescale")
        with state.world.all_or_none():
            return arcface_torch.begin_from_(state, Path(start.checkpoint))
    path = checkpoint.find(Path(start.checkpoint), state.world)
    saved = record.read(path)
    if saved.run.backbone != state.backbone.spec:
        raise ValueError(
            f"{path}: its backbone is {saved.run.backbone}, but this run's is "
            f"{state.backbone.spec}; choose the same one"
        )
    optimizer = type(state.optimizer).__name__
    if saved.run.optimizer != optimizer:
        raise ValueError(
            f"{path}: its optimizer is {saved.run.optimizer}, but this run's is {optimizer}; set "
            f"optim.name {saved.run.optimizer.lower()}, or take over the backbone alone with "
            "backbone.weights"
        )
    subcentres = state.head.centres.subcentres
    if saved.run.subcentres != subcentres:
        raise ValueError(
            f"{path}: has {saved.run.subcentres} class centres of each identity, but this run "
            f"{subcentres}; set head.subcentres to that"
        )
    same_people = saved.run.people in (None, state.found.people)
    num_old, num_new = saved.num_classes, state.head.num_classes
    with state.world.all_or_none():
        old_labels = _old_labels(start, num_old, num_new, same_people)
    check_same(state.world, {"digest of the old labels": digest([old_labels.numpy()])})
    tensors.read_shared_(path, state.backbone, state.optimizer)
    fill_momenta_(state.optimizer)
    take_over_(state.head.centres, path, old_labels)
    return []


def take_over_(centres: ClassCentres, path: Path, old_labels: Tensor) -> None:
    """Fill this rank's rows from a checkpoint, one piece of which is in memory at a time.

    `old_labels` (num_classes,) says where each class was, or `NEW`.
    """
    first_rows = torch.where(old_labels == NEW, NEW, old_labels * centres.subcentres)[:, None]
    own = torch.arange(centres.subcentres)
    old_rows = torch.where(first_rows == NEW, NEW, first_rows + own).flatten()
    mine = old_rows[centres.rows.start : centres.rows.stop]
    num_old = tensors.num_centres(path)
    for first in range(0, num_old, tensors.PIECE_ROWS):
        piece = range(first, min(first + tensors.PIECE_ROWS, num_old))
        here = ((mine >= piece.start) & (mine < piece.stop)).nonzero().flatten()
        if len(here):
            places = mine[here] - first
            counts = torch.zeros(len(piece), dtype=torch.int32)
            tensors.read_counts_(path, first, counts)
            centres.put_(here, tensors.read_centres(path, piece)[places], counts[places])


def _old_labels(start: StartConfig, num_old: int, num_new: int, same_people: bool) -> Tensor:
    """The old label of each of the new classes, or `NEW`; (num_new,)."""
    if start.classes is not None:
        labels = _read_labels(Path(start.classes), num_old)
        source = start.classes
    elif start.names:
        old_file, source = start.names
        lines = _lines(Path(old_file))
        if len(lines) != num_old:
            raise ValueError(f"{old_file} names {len(lines)} people, the checkpoint has {num_old}")
        old = {name: label for label, name in enumerate(lines)}
        if len(old) < len(lines):
            again = next(name for label, name in enumerate(lines) if old[name] != label)
            raise ValueError(f"{old_file}: {again[:40]!r} occurs twice; give each class its name")
        labels = [old.get(name, NEW) for name in _lines(Path(source))]
    elif num_old == num_new and same_people:
        return torch.arange(num_new)
    elif num_old == num_new:
        raise ValueError(
            f"the checkpoint has as many classes as the data ({num_new}), but other people or "
            "another order of them; say who is who with start.classes or start.names"
        )
    else:
        raise ValueError(
            f"the checkpoint has {num_old} classes and the data {num_new}; say who is who with "
            "start.classes or start.names"
        )
    if len(labels) != num_new:
        raise ValueError(f"{source} has {len(labels)} lines, but the data has {num_new} classes")
    taken = Counter(label for label in labels if label != NEW)
    if twice := [label for label, count in taken.items() if count > 1]:
        raise ValueError(
            f"{source}: old class {twice[0]} is taken by two new ones; keep one of them"
        )
    return torch.tensor(labels)


def _read_labels(path: Path, num_old: int) -> list[int]:
    labels = []
    for number, line in enumerate(_lines(path), 1):
        is_number = line.isdecimal() and len(line) < MAX_DIGITS
        label = NEW if line == "new" else int(line) if is_number else num_old
        if label >= num_old:
            raise ValueError(
                f"{path}, line {number}: {line[:40]!r} is neither `new` nor one of the labels 0 to "
                f"{num_old - 1} that the checkpoint has"
            )
        labels.append(label)
    return labels


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file; it has a line for each class, in order")
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8: {error.reason}") from error
