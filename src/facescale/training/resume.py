"""Saving a run and going on with it, on these ranks or on others."""

from pathlib import Path

from facescale.training import checkpoint
from facescale.training.optim import make_schedule
from facescale.training.state import TrainState


def save(state: TrainState, output: Path) -> None:
    """Write a checkpoint from which this very run goes on."""
    numbers = {
        "step": state.step,
        "position": state.position,
        "scaler": state.scaler.state_dict(),
    }
    checkpoint.save(
        output / "checkpoints",
        state.backbone,
        state.optimizer,
        state.head,
        numbers,
        world=state.world,
        keep=state.config.checkpoint.keep,
    )


def resume_(state: TrainState, output: Path) -> None:
    """Bring `state` to the last checkpoint in the run's folder; where there is none, it stays."""
    saved = checkpoint.checkpoints(output / "checkpoints")
    if saved:
        restore_(state, saved[-1])


def restore_(state: TrainState, path: Path) -> None:
    """Bring `state` to where a run was when it wrote the checkpoint at `path`.

    It goes on at the same sample. With the same global batch, `train.sync_batchnorm` (or one rank
    as before) and the same `head.shards` (or a sample rate of 1), it goes on as if it had never
    been stopped, whatever the number of ranks.
    """
    numbers = checkpoint.load(path, state.backbone, state.optimizer, state.head, world=state.world)
    state.step = state.head.num_steps = numbers["step"]
    state.position = numbers["position"]
    state.scaler.load_state_dict(numbers["scaler"])
    other_batch = state.position != state.step * state.global_batch
    if other_batch and state.config.train.steps is None:  # the rest needs another number of steps
        images = state.config.train.epochs * len(state.dataset)
        rest = max(0, round((images - state.position) / state.global_batch))
        state.num_steps = state.step + rest
        state.schedule = make_schedule(state.config.optim.schedule, state.num_steps)
