"""Margin softmax over class centres that are split by class, learnt on the way back.

A shard's part of it is a walk over its drawn rows: compiled (`compiled.py`) where that can be, in
torch's operations (`walk.py`) elsewhere. Here is what joins the shards and what the margin does.
"""

from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from facescale.head.step import Step
from facescale.head.walks.blocks import BlockWalk
from facescale.head.walks.cpu import CompiledWalk


class Walk(Protocol):
    """Over the drawn rows of this shard, once in each direction."""

    step: Step

    def forward(self) -> tuple[Tensor, Tensor]:
        """Log-sum-exp of each sample's other classes here, and its own cosine; (B,), (B,)."""
        ...

    def backward(
        self, log_sum: Tensor, own_cosine: Tensor, to_own: Tensor, factor: Tensor
    ) -> Tensor:
        """Move the centres; returns the gradient of the batch by this shard's rows, (B, dim)."""
        ...


def make_walk(step: Step) -> Walk:
    """The fastest walk there is for a step."""
    return CompiledWalk(step) if CompiledWalk.serves(step) else BlockWalk(step)


def combine(step: Step, log_sum: Tensor, own_logit: Tensor) -> tuple[Tensor, Tensor]:
    """Join the shards' statistics in one sum; (B,), (B,) of float64.

    A logit is at most `scale`, known beforehand, so exponentials relative to that bound
    can be added up as they are: in float64 none that matters is lost (exp(-2 * 300) > 1e-261).
    """
    bound = step.scale
    statistics = torch.stack([(log_sum.double() - bound).exp(), own_logit.double()])
    total, own_logit = step.shard.all_reduce_(statistics)
    return total.log() + bound, own_logit


def _own_part(step: Step, gradient: Tensor) -> Tensor:
    """Sum (B, dim) over the shards and keep this rank's rows; ranks may bring unequal numbers."""
    widest = max(step.counts)
    padded = gradient.new_zeros(step.shard.size, widest, gradient.shape[1])
    for part, rows in zip(padded, gradient.split(step.counts), strict=True):
        part[: len(rows)] = rows
    return step.shard.reduce_scatter(padded)[: step.counts[step.shard.rank]]


class MarginSoftmax(torch.autograd.Function):
    """This rank's share of the loss as a function of its own unit embeddings (b, dim)."""

    @staticmethod
    def forward(ctx: FunctionCtx, unit: Tensor, walk: Walk) -> Tensor:  # noqa: D102
        step = walk.step
        log_sum, own_cosine = walk.forward()
        own_logit = torch.zeros_like(log_sum)
        own_logit[step.own_sample] = step.scale * step.margin(own_cosine[step.own_sample])
        others, own = combine(step, log_sum, own_logit)
        # All that a sample's loss depends on; near 0 the loss keeps its last bits this way.
        gap = others - own
        losses = torch.logaddexp(gap, torch.zeros_like(gap))
        # Probability minus one, times the slope of the margin: what a sample's own cosine gets.
        to_own = -torch.sigmoid(gap).to(unit.dtype) * step.margin.slope(own_cosine)
        state = (walk, (own + losses).to(unit.dtype), own_cosine, to_own)
        ctx.state = state  # type: ignore[attr-defined]
        losses = losses.to(unit.dtype)
        share = losses[step.mine].sum() + 0.0 * losses.sum()  # NaN for one rank is NaN for all
        return share / step.global_batch

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor, None]:  # noqa: D102
        walk, *state = ctx.state
        factor = grad_loss * (walk.step.scale / walk.step.global_batch)
        return _own_part(walk.step, walk.backward(*state, factor)), None
