"""Saving a run and going on with it, on these ranks or on others."""

from pathlib import Path

from facescale.checkpoint import folder as checkpoint
from facescale.distributed import agree
from facescale.training.optim import make_schedule
from facescale.training.state import TrainState


def save(state: TrainState, output: Path) -> None:
    """Write a checkpoint from which this very run goes on."""
    numbers = {
        "step": state.step,
        "position": state.position,
        "skipped": state.skipped,
        "seed": state.config.seed,
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


def resume_(state: TrainState, output: Path) -> list[str]:
    """Bring `state` to the last whole checkpoint in the run's folder; without any it stays.

    Returns what there is to say about it: a line for each checkpoint that is damaged.

    Raises:
        ValueError: All checkpoints are damaged.
    """
    folder = output / "checkpoints"
    names = agree(" ".join(path.name for path in checkpoint.checkpoints(folder))).split()
    damaged: list[str] = []
    for name in reversed(names):
        wrong = checkpoint.damage(folder / name, state.world)
        if wrong is None:
            restore_(state, folder / name)
            return [f"{line}; going on from {name}" for line in damaged]
        damaged.append(f"{folder / name} is damaged: {wrong}")
    if damaged:
        raise ValueError(
            f"no checkpoint is whole: {'; '.join(damaged)}. Bring one back from a copy, or remove "
            "them to begin anew"
        )
    return []


def restore_(state: TrainState, path: Path) -> None:
    """Bring `state` to where a run was when it wrote the checkpoint at `path`.

    It goes on at the same sample. With the same global batch, `train.sync_batchnorm` (or one rank
    as before) and the same `head.shards` (or a sample rate of 1), it goes on as if it had never
    been stopped, whatever the number of ranks.
    """
    numbers = checkpoint.load(path, state.backbone, state.optimizer, state.head, world=state.world)
    state.step = state.head.num_steps = numbers["step"]
    state.position, state.skipped = numbers["position"], numbers["skipped"]
    state.scaler.load_state_dict(numbers["scaler"])
    other_batch = state.position != state.step * state.global_batch
    if other_batch and state.config.train.steps is None:  # the rest needs another number of steps
        images = state.config.train.epochs * len(state.dataset)
        rest = max(0, round((images - state.position) / state.global_batch))
        state.num_steps = state.step + rest
        state.schedule = make_schedule(state.config.optim.schedule, state.num_steps)
