"""The walk over the drawn class centres in blocks, in torch's operations, on any device."""

from dataclasses import dataclass

import torch
from torch import Tensor

from facescale.head.centres import Rows
from facescale.head.step import Step

BLOCK_ROWS = {
    "cpu": 2048,
    "cuda": 65536,
}  # few enough to stay in the cache, enough for cores to share a pass; CUDA unproven
SMALLEST_NORM = 1e-12  # of a centre, as torch.nn.functional.normalize


def block_rows(device_type: str) -> int:
    """Rows of a block on a device of this type."""
    return BLOCK_ROWS.get(device_type, max(BLOCK_ROWS.values()))


@dataclass(frozen=True)
class Block:
    """Some rows of the sample, and the samples whose own class is among them."""

    rows: Rows
    own_row: Tensor
    """Place in this block of the class of each such sample; (t,)."""
    own_sample: Tensor
    """Which sample of the group's batch that is; (t,)."""


class BlockWalk:
    """Forward keeps a running log-sum-exp of each sample; backward visits the same blocks again.

    It turns each block of logits into gradients and moves the centres of that block at once. So
    nothing of size batch x classes exists twice, and no gradient of size classes x dim at all.
    """

    defers = False

    @staticmethod
    def serves(step: Step) -> bool:
        """Any step, on any device."""
        return True

    def __init__(self, step: Step) -> None:
        self.step = step
        self._blocks = _cut(step, block_rows(step.batch.device.type))
        self._kept: list[tuple[Tensor, Tensor] | None] = []
        """Logits and inverse norms of each block, or None where they are computed again."""

    def forward(self) -> tuple[Tensor, Tensor]:
        """As `Walk.forward`."""
        step = self.step
        log_sum = step.batch.new_full((len(step.batch),), -torch.inf)
        own_cosine = torch.zeros_like(log_sum)
        budget = step.logits_budget
        for block in self._blocks:
            logits, inverse_norm = self._logits(block)
            own = (block.own_row, block.own_sample)
            own_cosine[block.own_sample] = logits[own] / step.scale
            logits[own] = -torch.inf
            log_sum = torch.logaddexp(log_sum, torch.logsumexp(logits, dim=0))
            budget -= logits.nbytes
            self._kept.append((logits, inverse_norm) if budget >= 0 else None)
        return log_sum, own_cosine

    def backward(
        self, log_sum: Tensor, own_cosine: Tensor, to_own: Tensor, factor: Tensor
    ) -> Tensor:
        """As `Walk.backward`."""
        step = self.step
        gradient = torch.zeros_like(step.batch)
        for index, block in enumerate(self._blocks):
            kept, self._kept[index] = self._kept[index], None
            logits, inverse_norm = self._logits(block) if kept is None else kept
            own = (block.own_row, block.own_sample)
            to_cosine = torch.sub(logits, log_sum).exp_()
            to_cosine[own] = to_own[block.own_sample]
            logits[own] = step.scale * own_cosine[block.own_sample]
            radial = torch.linalg.vecdot(to_cosine, logits, dim=1) * (factor / step.scale)
            to_product = to_cosine.mul_((factor * inverse_norm)[:, None])
            weight, velocity = step.centres.read(block.rows)
            gradient.addmm_(to_product.T, weight)
            if step.lr:
                # Only what turns a centre counts: its length does not change a cosine.
                decay = step.weight_decay / step.replicate.size - radial * inverse_norm.square()
                learn_(step, weight, velocity, to_product, decay)
                step.centres.write_(block.rows, step.key)
        return gradient

    def _logits(self, block: Block) -> tuple[Tensor, Tensor]:
        """Scaled cosines of a block, (rows, B), and 1 / length of its centres, (rows,)."""
        weight = self.step.centres.weight(block.rows)
        norm = torch.linalg.vector_norm(weight, dim=1)
        inverse_norm = norm.clamp_min_(SMALLEST_NORM).reciprocal_()
        # Rows first: a tall block times a narrow batch runs at the machine's full rate.
        logits = weight @ self.step.batch.T
        return logits.mul_((self.step.scale * inverse_norm)[:, None]), inverse_norm


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


def _cut(step: Step, width: int) -> list[Block]:
    """The rows of a step in blocks of `width`, each with the own classes among them."""
    sample = step.sample.compact()
    own_row, own_sample = sample.own()
    num_rows = len(step.centres) if sample.rows is None else len(sample.rows)
    starts = [*range(0, num_rows, width), num_rows]
    cuts = torch.searchsorted(own_row, torch.tensor(starts, device=own_row.device)).tolist()
    return [
        Block(
            rows=slice(start, stop) if sample.rows is None else sample.rows[start:stop],
            own_row=own_row[first:last] - start,
            own_sample=own_sample[first:last],
        )
        for start, stop, first, last in zip(starts, starts[1:], cuts, cuts[1:], strict=False)
    ]
