"""A loss or gradient that is not finite: the run stops, or skips the step, and says which one."""

import torch

from facescale.data.loader import Batch
from facescale.training.state import TrainState
from facescale.training.trackers.console import LOG

NAMED = 3  # records in the message; the log has all


def refuse(state: TrainState, batch: Batch, what: str, kept: str) -> None:
    """Log the records of the batch, then stop or count, as `train.nonfinite` says. A collective.

    Args:
        state: Of the run; all ranks are here, since a sum that all have is not finite.
        batch: This rank's part of the step's batch.
        what: "loss" or "gradient".
        kept: What the step has not changed, a sentence.

    Raises:
        FloatingPointError: `train.nonfinite` is "stop".
    """
    indices = state.world.gather_rows(torch.from_numpy(batch.indices).to(state.device)).tolist()
    lr = state.config.optim.lr * state.schedule(state.step)
    if state.world.rank == 0:
        records = ", ".join(state.dataset.describe(index) for index in indices)
        LOG.error("step %d: the %s is not finite. Batch: %s", state.step, what, records)
    if state.config.train.nonfinite == "skip":
        state.skipped += 1
        return
    named = [state.dataset.describe(index) for index in indices[:NAMED]]
    more = f" and {len(indices) - NAMED} more, see training.log" if len(indices) > NAMED else ""
    raise FloatingPointError(
        f"step {state.step}: the {what} is not finite; lower optim.lr (now {lr:g}), warm it up "
        f"with optim.schedule.warmup, or go past it with --train.nonfinite skip. {kept} Its batch: "
        f"{', '.join(named)}{more}"
    )
