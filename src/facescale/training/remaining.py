"""How many steps are left of a run that continues with another global batch."""

from facescale.training.optim import make_schedule
from facescale.training.state import TrainState


def plan_remaining_(state: TrainState) -> None:
    """Set number of steps and schedule from `state.step` and `state.position`, once those are set.

    Where `train.epochs` counts and the steps so far had another batch, the images that are left
    take another number of steps. The learning rate falls on from where it was.
    """
    other_batch = state.position != state.step * state.global_batch
    if not other_batch or state.config.train.steps is not None:
        return
    whole = state.config.train.epochs * len(state.dataset) / state.global_batch
    rest = max(0, round(whole - state.position / state.global_batch))
    state.num_steps = state.step + rest
    state.schedule = make_schedule(state.config.optim.schedule, state.num_steps, whole)
