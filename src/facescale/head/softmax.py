"""Margin softmax over class centres that are split by class, walked in blocks, learnt on the way.

Forward keeps a running log-sum-exp per sample; backward walks the same blocks, turns each block of
logits into gradients and at once moves the centres of that block. So nothing of size
batch x classes exists twice, and no gradient of size classes x dim exists at all.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from facescale.distributed import Group
from facescale.head.centres import ClassCentres, Rows
from facescale.head.margins import Margin

SMALLEST_NORM = 1e-12  # of a centre, as torch.nn.functional.normalize


@dataclass(frozen=True)
class Block:
    """Some rows of the sample, and the samples whose own class is among them."""

    rows: Rows
    own_row: Tensor
    """Place in this block of the class of each such sample; (t,)."""
    own_sample: Tensor
    """Which sample of the group's batch that is; (t,)."""


@dataclass
class Step:
    """All that one step of the head needs, from the forward to the backward pass.

    The group's batch has B samples, of which `mine` are this rank's.
    """

    centres: ClassCentres
    shard: Group
    replicate: Group
    margin: Margin
    scale: float
    lr: float
    momentum: float
    weight_decay: float
    batch: Tensor
    """Unit embeddings of the shard group's batch; (B, dim)."""
    counts: list[int]
    """Samples of each rank of the shard group; they sum to B."""
    global_batch: int
    blocks: list[Block]
    logits_budget: int
    """Bytes of logits that may be kept for the backward pass; others are computed again."""
    kept: list[tuple[Tensor, Tensor] | None] = field(default_factory=list)
    """What `logits_of` gave for each block, or None."""
    own_cosine: Tensor = field(init=False)
    """Cosine of each sample to its own class where that is in this shard; (B,)."""
    own_logit: Tensor = field(init=False)
    """Logit of each sample's own class after the margin, wherever that class is; (B,)."""
    log_sum: Tensor = field(init=False)
    """Log-sum-exp of each sample's logits over all shards; (B,)."""

    @property
    def mine(self) -> slice:
        """The rows of `batch` that this rank brought."""
        first = sum(self.counts[: self.shard.rank])
        return slice(first, first + self.counts[self.shard.rank])


def logits_of(step: Step, block: Block) -> tuple[Tensor, Tensor]:
    """Scaled logits of a block after the margin, (rows, B), and 1 / length of its centres, (rows,).

    Notes the own cosines on the way.
    """
    weight = step.centres.weight(block.rows)
    inverse_norm = torch.linalg.vector_norm(weight, dim=1).clamp_min_(SMALLEST_NORM).reciprocal_()
    # Rows first: a tall block times a narrow batch runs at the machine's full rate.
    logits = (weight @ step.batch.T).mul_((step.scale * inverse_norm)[:, None])
    own = logits[block.own_row, block.own_sample] / step.scale
    step.own_cosine[block.own_sample] = own
    logits[block.own_row, block.own_sample] = step.scale * step.margin(own)
    return logits, inverse_norm


def forward(step: Step) -> Tensor:
    """Walk the blocks; returns the loss of each sample of the group's batch, (B,)."""
    samples = len(step.batch)
    log_sum = step.batch.new_full((samples,), -torch.inf)
    own_logit = step.batch.new_zeros(samples)
    step.own_cosine = step.batch.new_zeros(samples)
    budget = step.logits_budget
    for block in step.blocks:
        logits, inverse_norm = logits_of(step, block)
        log_sum = torch.logaddexp(log_sum, torch.logsumexp(logits, dim=0))
        own_logit[block.own_sample] = logits[block.own_row, block.own_sample]
        budget -= logits.nbytes
        step.kept.append((logits, inverse_norm) if budget >= 0 else None)
    step.log_sum, step.own_logit = combine(step, log_sum, own_logit)
    return step.log_sum - step.own_logit


def combine(step: Step, log_sum: Tensor, own_logit: Tensor) -> tuple[Tensor, Tensor]:
    """Join the shards' statistics in one sum; (B,), (B,).

    A logit is at most `scale`, known beforehand, so exponentials relative to that bound
    can be added up as they are: in float64 none that matters is lost (exp(-2 * 300) > 1e-261).
    """
    bound = step.scale
    statistics = torch.stack([(log_sum.double() - bound).exp(), own_logit.double()])
    total, own_logit = step.shard.all_reduce_(statistics)
    return (total.log() + bound).to(log_sum.dtype), own_logit.to(log_sum.dtype)


def backward(step: Step, grad_loss: Tensor) -> Tensor:
    """Walk the blocks again: move their centres; returns this rank's embedding gradient.

    Args:
        step: As the forward pass left it. Its kept logits are used up.
        grad_loss: Gradient of the loss, ().

    Returns:
        (b, dim), summed over the shards.
    """
    gradient = torch.zeros_like(step.batch)
    factor = grad_loss * (step.scale / step.global_batch)
    # Probability minus one, times the slope of the margin: what a sample's own cosine gets.
    to_own = torch.expm1(step.own_logit - step.log_sum) * step.margin.slope(step.own_cosine)
    for index, block in enumerate(step.blocks):
        kept, step.kept[index] = step.kept[index], None
        logits, inverse_norm = logits_of(step, block) if kept is None else kept
        to_cosine = torch.sub(logits, step.log_sum).exp_()
        to_cosine[block.own_row, block.own_sample] = to_own[block.own_sample]
        logits[block.own_row, block.own_sample] = step.scale * step.own_cosine[block.own_sample]
        radial = torch.linalg.vecdot(to_cosine, logits, dim=1) * (factor / step.scale)
        to_product = to_cosine.mul_((factor * inverse_norm)[:, None])
        weight, velocity = step.centres.read(block.rows)
        gradient.addmm_(to_product.T, weight)
        if step.lr:
            # Only what turns a centre counts: its length does not change a cosine.
            decay = step.weight_decay / step.replicate.size - radial * inverse_norm.square()
            learn_(step, weight, velocity, to_product, decay)
            step.centres.write_(block.rows)
    return _own_part(step, gradient)


def learn_(step: Step, weight: Tensor, velocity: Tensor, to_product: Tensor, decay: Tensor) -> None:
    """One step of SGD with momentum on the rows of a block: torch.optim.SGD's rule.

    The gradient is `to_product @ batch + decay * weight`. It is added to the momentum where that
    lies, since each pass over rows x dim counts. As copies add up their gradients, each brings
    its share of momentum and decay.

    Args:
        step: Gives the batch and the rates.
        weight: (rows, dim), not normalised; moved.
        velocity: (rows, dim), the momentum; moved.
        to_product: Gradient of the loss with respect to weight @ batch.T; (rows, B).
        decay: Factors on `weight` in its own gradient; (rows,).
    """
    velocity.addmm_(to_product, step.batch, beta=step.momentum / step.replicate.size)
    velocity.addcmul_(decay[:, None], weight)
    step.replicate.all_reduce_(velocity)
    weight.add_(velocity, alpha=-step.lr)


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
    def forward(ctx: FunctionCtx, unit: Tensor, step: Step) -> Tensor:  # noqa: D102
        ctx.step = step  # type: ignore[attr-defined]
        losses = forward(step)
        share = losses[step.mine].sum() + 0.0 * losses.sum()  # NaN for one rank is NaN for all
        return share / step.global_batch

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor, None]:  # noqa: D102
        return backward(ctx.step, grad_loss), None
