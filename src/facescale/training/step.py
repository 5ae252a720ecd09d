"""A training step: forward, backward, and the update of backbone and class centres."""

import torch
from torch import Tensor

from facescale.data.loader import Batch
from facescale.head.late import LateNumbers
from facescale.random import derive_seed
from facescale.training.finite import GRADIENT_KEPT, LOSS_KEPT, refuse, settle_last
from facescale.training.groups import hold_statistics_
from facescale.training.late import Pending, learn_unless_
from facescale.training.state import AUGMENT, DROPOUT, TrainState
from facescale.training.statistics import joined, set_


def train_step(state: TrainState, batch: Batch) -> Tensor:
    """One update of backbone and class centres. Returns this rank's share of the loss, ().

    Where `state.asks_late`, a loss or gradient that is not finite is reported by the next step, or
    by `settle`; it changes nothing, and neither does the step that reports it. With fp16 and a head
    that defers, that holds for the loss; the scaler deals with an overflow of the gradient.

    Every random number comes from (seed, step), so a run that was stopped repeats the same ones.
    """
    config, step = state.config, state.step
    lr = state.rate(step)
    torch.manual_seed(derive_seed(config.seed, DROPOUT, step, state.world.rank))
    images = state.augment(
        batch.images.to(state.device, non_blocking=True),
        seed=derive_seed(config.seed, AUGMENT),
        position=batch.position + batch.offset,
    )
    labels = batch.labels.to(state.device, non_blocking=True)
    # Before the backbone: which class centres join depends on the labels alone.
    sample = state.head.draw(labels, state.counts)
    state.head.margin_fraction = min(1.0, (step + 1) / (config.head.margin.warmup or 1))
    statistics = joined(state.running, labels.new_empty(0, dtype=torch.float32))
    if not state.model.training or config.optim.groups:
        state.model.train()
    if config.optim.groups and config.optim.frozen_statistics:
        hold_statistics_(state.backbone)
    with state.autocast():
        embeddings = state.model(images)
    settle_behind_forward(state, statistics)
    # The head works in float32 and needs no loss scale; what goes into the trunk does.
    share_of_update = 1 / config.train.accumulate
    one = torch.ones((), dtype=torch.float64, device=state.device)  # for runs in float64
    scale = state.scaler.scale(one) * share_of_update
    embeddings.register_hook(lambda gradient: gradient * scale)
    loss = state.head(embeddings, sample, lr * config.head.lr_factor * share_of_update)
    learn(state, batch, lr, loss, statistics)
    state.step += 1
    state.position += state.global_batch
    share: Tensor = loss.detach()
    return share


def learn(state: TrainState, batch: Batch, lr: float, loss: Tensor, statistics: Tensor) -> None:
    """The backward pass and the backbone's update, or neither where the loss is not finite."""
    if state.asks_late:
        loss.backward()
        learn_late(state, batch, lr, loss.detach(), statistics)
    elif state.scaler.is_enabled() and state.head.defers:  # the scaler skips such an update
        loss.backward()
        bad = ~loss.detach().isfinite()
        ask_later(state, batch, torch.stack([bad, torch.zeros_like(bad)]), statistics)
        apply_gradients(state, batch, lr)
    elif loss.isfinite():
        loss.backward()
        apply_gradients(state, batch, lr)
    else:
        set_(state.running, statistics)
        refuse(state, batch, "loss", LOSS_KEPT, state.step)
        if state.kept.gradients:  # an update may be due for the batches before
            apply_gradients(state, batch, lr)


def settle_behind_forward(state: TrainState, statistics: Tensor) -> None:
    """Settle the last step while the device is busy with the forward pass of this one.

    If that raises, the forward pass has changed nothing.
    """
    try:
        settle_last(state)
    except FloatingPointError:
        set_(state.running, statistics)
        state.head.num_steps -= 1
        raise


def apply_gradients(state: TrainState, batch: Batch, lr: float) -> None:
    """The backbone's step. All ranks hold the same sums, so all find the same overflow and skip."""
    if (state.step + 1) % state.config.train.accumulate:
        state.kept.add_gradients_()
        return
    state.kept.give_gradients_back_()
    state.scaler.unscale_(state.optimizer)
    norm = clip_gradients(state, lr)
    if state.scaler.is_enabled() or norm.isfinite():
        state.scaler.step(state.optimizer)
        state.scaler.update()
        # The scaler skips an update whose gradient is not finite, and so is its norm.
        state.kept.update_average_(norm.isfinite() if state.scaler.is_enabled() else None)
    else:
        refuse(state, batch, "gradient", GRADIENT_KEPT, state.step)
    state.optimizer.zero_grad(set_to_none=True)


def learn_late(
    state: TrainState, batch: Batch, lr: float, loss: Tensor, statistics: Tensor
) -> None:
    """The backbone's step, which changes nothing where loss or gradient is not finite."""
    norm = clip_gradients(state, lr)
    bad = torch.stack([~loss.isfinite(), ~norm.isfinite()])
    learn_unless_(state.optimizer, bad.any())
    ask_later(state, batch, bad, statistics)
    state.optimizer.zero_grad(set_to_none=True)  # its memory is then free for the average's way
    state.kept.update_average_(~bad.any())


def ask_later(state: TrainState, batch: Batch, bad: Tensor, statistics: Tensor) -> None:
    """Put the running `statistics` back where the loss is not finite; the host reads `bad` later.

    `bad` (2,) says whether the loss, and whether the gradient, is not finite.
    """
    set_(state.running, torch.where(bad[:1], statistics, joined(state.running, statistics)))
    state.pending = Pending(state.step, batch, LateNumbers(bad.long()))


def clip_gradients(state: TrainState, lr: float) -> Tensor:
    """Set the learning rate, and shorten the backbone's gradient; returns its norm before, ()."""
    for group in state.optimizer.param_groups:
        group["lr"] = lr * group["factor"]
    own = [p for group in state.optimizer.param_groups for p in group["params"]]
    learning = [p for p in own if p.grad is not None]
    norm = torch.nn.utils.get_total_norm([p.grad for p in learning if p.grad is not None])
    if state.config.optim.clip_norm is not None:
        torch.nn.utils.clip_grads_with_norm_(learning, state.config.optim.clip_norm, norm)
    return norm
