"""Saving a run and going on with it, on these ranks or on others."""

from pathlib import Path
from typing import Any

from facescale.checkpoint import folder as checkpoint
from facescale.checkpoint import record, tensors
from facescale.checkpoint.folder import Part
from facescale.checkpoint.record import Run
from facescale.distributed import agree
from facescale.models.tensorfile import kind_of
from facescale.training import arcface_torch
from facescale.training.dataset import order_of
from facescale.training.optim import fill_momenta_
from facescale.training.passed_over import PassedOver
from facescale.training.remaining import plan_remaining_
from facescale.training.state import TrainState
from facescale.training.statistics import (
    averaged_statistics,
    read_statistics,
    write_statistics_,
)

STATISTICS = "statistics"


def save(state: TrainState, output: Path, best: int | None = None) -> None:
    """Write a checkpoint from which this very run goes on. A collective.

    Args:
        state: The run.
        output: Its folder.
        best: Step of an older checkpoint that stays whatever `checkpoint.keep` says.

    Raises:
        OSError: It could not be written; on every rank alike.
    """
    run = Run(
        step=state.step,
        position=state.position,
        skipped=state.skipped,
        unreadable=state.passed_over.gather(state.world),
        seed=state.config.seed,
        scaler=state.scaler.state_dict(),
        people=state.found.people,
        order=order_of(state.config.data, state.dataset),
        backbone=dict(state.backbone.spec),
        optimizer=type(state.optimizer).__name__,
        subcentres=state.head.centres.subcentres,
    )
    centres, mesh = state.head.centres, state.head.mesh
    with averaged_statistics(state.backbone, state.world) as own:
        shared = tensors.shared_tensors(state.backbone, state.optimizer, state.head)
        shared |= state.kept.tensors(state.world)
        # Sums of gradients may overflow in fp16: the scaler skips their update.
        lasting = (t for name, t in shared.items() if not name.startswith("gradients/"))
        part = Part(
            shared=shared,
            own={STATISTICS: own},
            centres=centres.table,
            first=centres.rows.start if mesh.replicate.rank == 0 else None,
            counts=centres.counts if len(centres.counts) else None,
            finite=tensors.are_finite(lasting) and tensors.rows_are_finite(centres.table),
        )
        folder, keep = output / "checkpoints", state.config.checkpoint.keep
        checkpoint.save(folder, run, part, world=state.world, keep=keep, best=best)


def resume_(state: TrainState, output: Path) -> list[str]:
    """Bring `state` to the last whole checkpoint in the run's folder; without any it stays.

    Returns what there is to say about it: that there is none, a line for each checkpoint that is
    damaged or not finite, and that it was written with another seed.

    Raises:
        ValueError: All checkpoints are damaged, the last one is not of this run, or there are only
            arcface_torch's and no `start.checkpoint`.
    """
    folder = output / "checkpoints"
    names = agree(" ".join(path.name for path in checkpoint.checkpoints(folder))).split()
    passed: list[str] = []
    for name in reversed(names):
        wrong = checkpoint.damage(folder / name, state.world)
        if wrong is not None:
            passed.append(f"{folder / name} is damaged: {wrong}")
            continue
        saved = record.read(folder / name)
        if saved.finite:
            restore_(state, folder / name)
            said = [f"{line}; going on from {name}" for line in passed]
            return said + _of_another_seed(saved.run.seed, state.config.seed)
        passed.append(f"{folder / name} has weights that are not finite")
    if passed:
        raise ValueError(
            f"no checkpoint is whole: {'; '.join(passed)}. Bring one back from a copy, or remove "
            "them to begin anew"
        )
    foreign = agree("arcface_torch" if arcface_torch.is_theirs(output) else "")
    if foreign and state.config.start.checkpoint is None:
        raise ValueError(
            f"{output} has no checkpoint of facescale, but {arcface_torch.FIRST} of arcface_torch; "
            f"continue that run with --start.checkpoint {output}"
        )
    return [f"no checkpoint in {folder}: starting at step 0"]


def _of_another_seed(before: int, now: int) -> list[str]:
    if before == now:
        return []
    return [
        f"seed is {now}, but the checkpoint was written with {before}: other classes are drawn and "
        "samples come in another order from here on, so an image may be twice in this epoch or not "
        f"at all; --seed {before} goes on exactly"
    ]


def restore_(state: TrainState, path: Path) -> None:
    """Bring `state` to where a run was when it wrote the checkpoint at `path`.

    It goes on at the same sample. With the same global batch, `train.sync_batchnorm` (or one rank
    as before) and the same `head.shards` (or a sample rate of 1), it goes on as if it had never
    been stopped, whatever the number of ranks. With another global batch, `train.epochs` take
    another number of steps; a learning rate that falls to 0 at the end falls on from where it was.

    Raises:
        ValueError: The checkpoint is of another format, network, optimizer, or other people.
    """
    saved = record.read(path)
    _check_same_run(state, saved, path)
    said = ""
    try:
        _fill_(state, saved, path)
    except (OSError, ValueError) as error:
        said = str(error)
    for answer in state.world.gather_texts(said):  # none goes on where another cannot
        if answer:
            raise ValueError(answer)
    run = saved.run
    state.step = state.head.num_steps = run.step
    state.position, state.skipped = run.position, run.skipped
    state.passed_over = PassedOver(run.unreadable)
    same_scale = run.scaler.keys() == state.scaler.state_dict().keys()
    if same_scale:
        state.scaler.load_state_dict(run.scaler)
    if not same_scale or state.step % state.config.train.accumulate == 0:
        state.kept.gradients.clear()  # sums in other units, or of another train.accumulate
    plan_remaining_(state)


def _fill_(state: TrainState, saved: record.Record, path: Path) -> None:
    """Read what this rank needs."""
    centres = state.head.centres
    tensors.check_stored(path, saved, kind_of(centres.table))
    tensors.read_shared_(path, state.backbone, state.optimizer, state.head)
    fill_momenta_(state.optimizer)
    state.kept.load_(tensors.read_kept(path), path)
    tensors.read_rows_(path, centres.rows.start, centres.table)
    tensors.read_counts_(path, centres.rows.start, centres.counts)
    centres.look_again_()
    if saved.ranks == state.world.size:
        like = read_statistics(state.backbone)
        own = tensors.read_own(path, state.world.rank, STATISTICS, like)
        write_statistics_(state.backbone, own)


def _check_same_run(state: TrainState, saved: record.Record, path: Path) -> None:
    """ValueError where the checkpoint is of a run that began with another config or other data."""
    num_classes = saved.num_classes
    if num_classes != state.head.num_classes:
        raise ValueError(
            f"{path}: has {num_classes} classes, but this run has {state.head.num_classes}; "
            "resume with the data that the run began with, or begin a new run from it with "
            "start.checkpoint and start.names"
        )
    if saved.run.people not in (None, state.found.people):
        raise ValueError(
            f"{path}: the data has other people, or the same in another order, than the run began "
            "with: each would take over the class centre of another. Resume with the old data, or "
            "begin a new run from it with start.checkpoint and start.names (or start.classes)"
        )
    order = order_of(state.config.data, state.dataset)
    if saved.run.order not in (None, order):
        raise ValueError(
            f"{path}: the order of its samples is {saved.run.order!r}, but this run's is "
            f"{order!r}; resume with the data.order and data.skip that the run began with (and "
            "data.on_error: skip passes over records that are not in its list), or begin a new run "
            "from it with start.checkpoint"
        )
    ours: dict[str, Any] = {
        "backbone": state.backbone.spec,
        "optimizer": type(state.optimizer).__name__,
        "subcentres": state.head.centres.subcentres,
    }
    for part, mine in ours.items():
        if (theirs := getattr(saved.run, part)) != mine:
            raise ValueError(
                f"{path}: its {part} is {theirs}, but this run's is {mine}; resume with the "
                "config that the run began with"
            )
