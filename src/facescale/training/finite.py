"""A loss or gradient that is not finite: the run stops, or skips the step, and says which one."""

import torch

from facescale.data.loader import Batch
from facescale.training.state import TrainState
from facescale.training.trackers.console import LOG

NAMED = 3  # records in the message; the log has all


LOSS_KEPT = "No weight was changed by this step."
GRADIENT_KEPT = "The backbone was not changed, the class centres were."


def settle(state: TrainState) -> None:
    """Wait for the last step, and refuse it if its loss or gradient is not finite.

    Does nothing where that has been asked. A collective where it is refused. To be called before
    the next step, and before what a step has left is saved or evaluated.

    Raises:
        FloatingPointError: As `refuse`.
        ValueError: A label of the last step is outside the classes.
    """
    state.head.settle()
    settle_last(state)


def settle_last(state: TrainState) -> None:
    """`settle` but for the labels, which the head's next draw asks for."""
    if state.pending is None:
        return
    last, state.pending = state.pending, None
    bad_loss, bad_gradient = last.numbers.read()
    if bad_loss:
        refuse(state, last.batch, "loss", LOSS_KEPT, last.step)
    elif bad_gradient:
        refuse(state, last.batch, "gradient", GRADIENT_KEPT, last.step)


def refuse(state: TrainState, batch: Batch, what: str, kept: str, step: int) -> None:
    """Log the records of the batch, then stop or count, as `train.nonfinite` says. A collective.

    Args:
        state: Of the run; all ranks are here, since a sum that all have is not finite.
        batch: This rank's part of the step's batch.
        what: "loss" or "gradient".
        kept: What the step has not changed, a sentence.
        step: Its number.

    Raises:
        FloatingPointError: `train.nonfinite` is "stop".
    """
    indices = state.world.gather_rows(torch.from_numpy(batch.indices).to(state.device)).tolist()
    if state.world.rank == 0:
        records = ", ".join(state.dataset.describe(index) for index in indices)
        LOG.error("step %d: the %s is not finite. Batch: %s", step, what, records)
    if state.config.train.nonfinite == "skip":
        state.skipped += 1
        return
    named = [state.dataset.describe(index) for index in indices[:NAMED]]
    more = f" and {len(indices) - NAMED} more, see training.log" if len(indices) > NAMED else ""
    raise FloatingPointError(
        f"step {step}: the {what} is not finite; lower optim.lr (now {state.rate(step):g}), warm "
        f"it up with optim.schedule.warmup, or go past it with --train.nonfinite skip. {kept} Its "
        f"batch: {', '.join(named)}{more}"
    )
