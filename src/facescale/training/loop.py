"""The loop: a batch, a step, now and then a line, a verification, a checkpoint.

Functions over one `TrainState`. Whoever wants another loop writes it from the same parts.
"""

import signal
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from facescale.checkpoint.best import Best
from facescale.config import Config
from facescale.data.loader import Loader
from facescale.distributed import processes, world_group
from facescale.evaluation.plots import plot_roc, plot_training
from facescale.evaluation.verification import Verification
from facescale.files import write_whole
from facescale.kernels.cpu.build import missing
from facescale.models.torchfile import save_state_dict
from facescale.models.weights import save_backbone
from facescale.training.agreement import check_same, of_run
from facescale.training.batches import UNREADABLE, Batches
from facescale.training.effects import model_pt_note, without_effect
from facescale.training.graphs import graphs_note
from facescale.training.keeping import Keeper, all_are_told, check_best, due
from facescale.training.lock import RunFolder, locked
from facescale.training.metrics import Tally, Window, memory_row, read_metrics
from facescale.training.optim import unreached
from facescale.training.precision import precision_note, settled
from facescale.training.resume import resume_
from facescale.training.sets import check_sets, unused
from facescale.training.signals import StopFlag, asked_to_leave
from facescale.training.start import begin_from_
from facescale.training.state import TrainState, build
from facescale.training.statistics import averaged_statistics
from facescale.training.step import train_step
from facescale.training.trackers import Run, Trackers


@dataclass
class Summary:
    """What a run came to."""

    output: Path
    steps: int
    images: int
    seconds: float
    wait_s: float
    """Of the seconds: that steps waited for images."""
    loss: float
    verifications: dict[str, Verification] = field(default_factory=dict)
    best: Best | None = None
    """All results on the set of `checkpoint.best`."""
    unreadable: int = 0
    """Records that could not be read and were passed over since the run began, on any rank."""
    signal: int = 0
    """The signal that asked the run to leave before its end; 0 if none did."""


def train(config: Config, output: Path, *, resume: bool = False) -> Summary:
    """Train as `config` says and leave everything in the folder `output`.

    Under torchrun every rank calls this. With `resume` the run goes on from its last checkpoint,
    or begins where there is none. On one of `signals.SIGNALS`, SIGTERM or Ctrl-C for example, it
    saves a checkpoint and stops.

    Raises:
        FileNotFoundError, ValueError: What the config names is missing or does not fit; or, once a
            checkpoint is saved, an image cannot be read.
        FloatingPointError: The loss is no longer finite.
        OSError: A checkpoint or another file could not be written, a full disk for example, or
            another run writes to the same folder.
    """
    with processes(config.device, config.timeout_s) as device, ExitStack() as stack:
        asked, config = config, settled(config, device.type)
        check_same(world_group(), of_run(config))
        trackers = Trackers(config.trackers, rank=world_group().rank)
        state = build(config, device)
        check_best(state)
        check_sets(state.pairs, state.world)
        folder = stack.enter_context(locked(output, state.world))
        notes = [f"data: {state.found}", *state.found.warnings()]
        notes += resume_(state, output) if resume else []
        if hint := unused(config.evaluation.sets, config.data.path):
            notes.append(hint)
        if device.type == "cpu" and (reason := missing()):
            notes.append(f"without compiled kernels a step takes longer: {reason}")
        if said := precision_note(asked, config, device.type):
            notes.append(said)
        if said := graphs_note(config.train, device.type, state.world.size, state.backbone):
            notes.append(said)
        if state.step == 0 and config.start.checkpoint is not None:
            notes += begin_from_(state, config.start)
        notes += [*unreached(config, state.num_steps), *without_effect(config)]
        notes += model_pt_note(config, state.backbone.spec.get("family"))
        stack.callback(trackers.close)
        with all_are_told(state.world):
            if state.world.rank == 0:
                write_whole(output / "config.yaml", [config.to_yaml().encode()])
            trackers.start(Run(output, asdict(config), state.step, state.num_steps))
        for note in notes:
            trackers.text(note)
        return run(state, folder, trackers)


def run(state: TrainState, folder: RunFolder, trackers: Trackers) -> Summary:
    """All steps that are left, and what is due between them."""
    output = folder.folder
    start, first_step, leaving = time.perf_counter(), state.step, 0
    keeper = Keeper(state, folder, trackers)
    keeper.catch_up()
    tally, window = Tally(state.device, state.world, state.groups()), Window()
    stop = StopFlag(state.world, state.device)
    with state.loader() as loader, asked_to_leave() as asked:
        batches = Batches(loader, state.num_steps - state.step, state.device)
        batches.raise_if_failed(state.world)
        while state.step < state.num_steps and not (leaving or keeper.stops_early):
            tally.add_(train_step(state, next(batches)))
            batches.take()
            window.add(state.global_batch)
            trackers.advance()
            if due(state, state.config.log_every):
                report(state, trackers, loader, tally, window, folder)
            began = time.perf_counter()
            wish = UNREADABLE if batches.failure else asked.signal
            leaving = stop(wish) if state.step < state.num_steps else 0
            keeper.keep(bool(leaving))
            window.skip(time.perf_counter() - began)
        if leaving == UNREADABLE:
            batches.raise_if_failed(state.world, f". Saved at step {state.step}")
    summary = Summary(
        output,
        steps=state.step - first_step,
        images=(state.step - first_step) * state.global_batch,
        seconds=time.perf_counter() - start,
        wait_s=loader.wait_s,
        loss=tally.mean,
        verifications=keeper.verifications,
        best=keeper.best,
        unreadable=len(state.passed_over.gather(state.world)),
        signal=leaving,
    )
    if leaving:
        name = signal.Signals(leaving).name
        trackers.text(f"{name}: saved at step {state.step}; --resume goes on from there")
    else:
        averaged = state.kept.averaged(state.world)
        with averaged, averaged_statistics(state.backbone, state.world):
            if state.world.rank == 0:
                leave_results(state, output, summary, trackers)
    return summary


def report(
    state: TrainState,
    trackers: Trackers,
    loader: Loader,
    tally: Tally,
    window: Window,
    folder: RunFolder | None = None,
) -> None:
    """Say and write down what the last steps were like, if the run's folder is still there."""
    row: dict[str, Any] = {
        "epoch": state.position / len(state.dataset),
        **tally.close(),
        "lr": state.rate(state.step - 1),
        "images_per_s": window.close(),
        "wait_s": loader.wait_s,
        **memory_row(state.device),
    }
    if state.scaler.is_enabled():
        row["grad_scale"] = state.scaler.get_scale()
    if state.config.train.nonfinite == "skip":
        row["skipped"] = state.skipped
    if state.config.data.on_error == "skip":
        row["unreadable"] = len(state.passed_over.gather(state.world))
    with all_are_told(state.world):
        if folder is not None:
            folder.check()
        trackers.numbers(row)


def leave_results(state: TrainState, output: Path, summary: Summary, trackers: Trackers) -> None:
    """The trained backbone and the pictures of the run."""
    save_backbone(output / "model.safetensors", state.backbone)
    if state.config.checkpoint.model_pt:
        save_state_dict(output / "model.pt", state.backbone)
    try:
        rows = read_metrics(output / "metrics.jsonl")
    except ValueError as error:  # changed by hand: the work is done all the same
        trackers.text(f"training.png is not drawn: {error}")
        rows = []
    if any("loss" in row for row in rows):
        plot_training(output / "training.png", rows)
    if summary.verifications:
        plot_roc(output / "roc.png", summary.verifications)
