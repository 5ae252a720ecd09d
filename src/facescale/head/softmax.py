"""Margin softmax over class centres that are split by class and learn in the backward pass.

A walk does a shard's part over its drawn rows. Here the shards' parts are joined, and the margin is
applied.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from facescale.distributed import Group
from facescale.head.centres import rows_of_classes
from facescale.head.margins import TargetMargin, value_and_slopes
from facescale.head.step import Step
from facescale.head.walks import Walk
from facescale.head.walks.blocks import SMALLEST_NORM


class MarginSoftmax(torch.autograd.Function):
    """This rank's share of the loss, as a function of its unit embeddings and their norms.

    `norms` (B,) are those of the whole batch of the step.
    """

    @staticmethod
    def forward(  # noqa: D102
        ctx: FunctionCtx,
        unit: Tensor,
        norm: Tensor,
        walk: Walk,
        step: Step,
        norms: Tensor,
        margin: TargetMargin,
    ) -> Tensor:
        share = step.sample.share
        log_sum, own_cosine = walk.forward()
        others, own_cosine = combine(step.scale, share.group, log_sum, own_cosine)
        own_cosine = own_cosine.to(unit.dtype)
        target, to_cosine, to_norm = value_and_slopes(margin, own_cosine, norms)
        own = step.scale * target.double()
        # All that a sample's loss depends on; near 0 the loss keeps its last bits this way.
        gap = others - own
        losses = torch.logaddexp(gap, torch.zeros_like(gap))
        # Probability minus one: what a sample's own logit gets.
        pull = -torch.sigmoid(gap).to(unit.dtype)
        state = ((own + losses).to(unit.dtype), own_cosine, pull * to_cosine)
        ctx.state = (walk, step, state, (pull * to_norm)[share.mine])  # type: ignore[attr-defined]
        losses = losses.to(unit.dtype)
        total = losses[share.mine].sum() + 0.0 * losses.sum()  # NaN for one rank is NaN for all
        if walk.defers:
            step.bad.logical_or_(~total.isfinite())
        return total / share.global_batch

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:  # noqa: D102
        if torch.is_grad_enabled():  # which autograd says of `create_graph`
            raise RuntimeError(
                "MarginHead has no second derivative; call backward or grad without create_graph"
            )
        if ctx.state is None:
            raise RuntimeError(
                "backward() was called a second time on a loss of MarginHead, and the class "
                "centres have moved in the first one; call the head again"
            )
        walk, step, state, to_norm = ctx.state
        if step.lr:
            ctx.state = None
        factor = grad_loss * (step.scale / step.sample.share.global_batch)
        with torch.autocast(grad_loss.device.type, enabled=False):
            gradient = walk.backward(*state, factor)
            own = step.sample.share.scatter(gradient)
        return own, factor * to_norm, None, None, None, None


def own_cosines(step: Step) -> Tensor:
    """The cosine of each sample of the batch to the nearest centre of its class; (B,)."""
    sample, centres = step.sample, step.centres
    here = sample.place >= 0
    classes = sample.place.where(here, 0)
    if sample.rows is not None and len(sample.rows):
        classes = sample.rows[classes]
    own = torch.zeros(len(here), dtype=torch.float64, device=step.batch.device)
    if here.any():
        rows = rows_of_classes(classes[here], centres.subcentres)
        weight = centres.weight(rows).unflatten(0, (-1, centres.subcentres))
        length = torch.linalg.vector_norm(weight, dim=2, keepdim=True)
        unit = weight / length.clamp_min(SMALLEST_NORM)
        own[here] = (unit @ step.batch[here][:, :, None])[:, :, 0].amax(dim=1).double()
    return step.sample.share.group.all_reduce_(own).to(step.batch.dtype)


def combine(
    scale: float, shard: Group, log_sum: Tensor, own_cosine: Tensor
) -> tuple[Tensor, Tensor]:
    """Join the shards' statistics in one sum; (B,), (B,) of float64.

    A cosine is at most 1, and at most 2 where a margin has made more of it. So exponentials
    relative to `scale` can be added up as they are: in float64 none that matters is lost, as
    exp(-2 * 300) > 1e-261 and exp(300) < 1e131.
    """
    statistics = torch.stack([(log_sum.double() - scale).exp(), own_cosine.double()])
    total, own_cosine = shard.all_reduce_(statistics)
    return total.log() + scale, own_cosine
