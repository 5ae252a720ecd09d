"""The walk over the drawn class centres in blocks, in torch's operations, on any device."""

from dataclasses import dataclass

import torch
from torch import Tensor

from facescale.head.centres import Rows, rows_of_classes
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
    """Some classes of the sample with their rows, and the samples whose own class is among them."""

    rows: Rows
    """`subcentres` rows of each class."""
    own_row: Tensor
    """Place in this block of the class of each such sample; (t,)."""
    own_sample: Tensor
    """Which sample of the group's batch that is; (t,)."""


@dataclass(frozen=True)
class Seen:
    """What a block's rows are to the batch."""

    logits: Tensor
    """Scaled cosine to the nearest centre of each class; (classes, B)."""
    nearest: Tensor | None
    """Which of the class's centres that is, uint8; (classes, B). None: it has but one."""
    inverse_norm: Tensor
    """1 / length of each row; (rows,)."""

    @property
    def num_bytes(self) -> int:
        """Size of what has the batch's width."""
        return self.logits.nbytes + (0 if self.nearest is None else self.nearest.nbytes)


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
        self._kept: list[Seen | None] = []
        """What was seen of each block, or None where it is computed again."""

    def forward(self) -> tuple[Tensor, Tensor]:
        """As `Walk.forward`."""
        step = self.step
        log_sum = step.batch.new_full((len(step.batch),), -torch.inf)
        own_cosine = torch.zeros_like(log_sum)
        budget = step.logits_budget
        for block in self._blocks:
            seen = self._see(block)
            own = (block.own_row, block.own_sample)
            own_cosine[block.own_sample] = seen.logits[own] / step.scale
            logits, _ = self._of_others(seen.logits)
            logits[own] = -torch.inf
            log_sum = torch.logaddexp(log_sum, torch.logsumexp(logits, dim=0))
            budget -= seen.num_bytes
            self._kept.append(seen if budget >= 0 else None)
        return log_sum, own_cosine

    def backward(
        self, log_sum: Tensor, own_cosine: Tensor, to_own: Tensor, factor: Tensor
    ) -> Tensor:
        """As `Walk.backward`."""
        step = self.step
        centres = step.centres
        gradient = torch.zeros_like(step.batch)
        for index, block in enumerate(self._blocks):
            kept, self._kept[index] = self._kept[index], None
            seen = self._see(block) if kept is None else kept
            own = (block.own_row, block.own_sample)
            logits, slope = self._of_others(seen.logits)
            to_cosine = torch.sub(logits, log_sum).exp_()
            if slope is not None:
                to_cosine.mul_(slope)
            to_cosine[own] = to_own[block.own_sample]
            seen.logits[own] = step.scale * own_cosine[block.own_sample]
            to_cosine, cosines = self._to_rows(to_cosine, seen)
            # Only what turns a centre counts: its length does not change a cosine.
            radial = torch.linalg.vecdot(to_cosine, cosines, dim=1) * (factor / step.scale)
            to_product = to_cosine.mul_((factor * seen.inverse_norm)[:, None])
            state = centres.state(block.rows)
            gradient.addmm_(to_product.T, state[:, 0])
            if step.lr:
                counts = centres.count_(block.rows) if step.rule.counts else centres.counts
                parts = (to_product, step.batch, radial * seen.inverse_norm.square())
                step.rule.learn_(state, counts, parts, step.replicate, step.lr)
                centres.write_(block.rows, step.key)
        return gradient

    def _see(self, block: Block) -> Seen:
        """The block's logits, before the margin."""
        weight = self.step.centres.weight(block.rows)
        norm = torch.linalg.vector_norm(weight, dim=1)
        inverse_norm = norm.clamp_min_(SMALLEST_NORM).reciprocal_()
        # Rows first: a tall block times a narrow batch runs at the machine's full rate.
        logits = weight @ self.step.batch.T
        logits.mul_((self.step.scale * inverse_norm)[:, None])
        if self.step.centres.subcentres == 1:
            return Seen(logits, None, inverse_norm)
        best, nearest = self._by_class(logits).max(dim=1)
        return Seen(best, nearest.to(torch.uint8), inverse_norm)

    def _by_class(self, of_rows: Tensor) -> Tensor:
        """(rows, B) as (classes, subcentres, B)."""
        return of_rows.view(-1, self.step.centres.subcentres, of_rows.shape[1])

    def _of_others(self, logits: Tensor) -> tuple[Tensor, Tensor | None]:
        """The logits that the softmax takes for other classes, and their slopes; None is 1.

        They are `logits` itself where the margin asks nothing of other classes.
        """
        if self.step.others is None:
            return logits, None
        cosines, slopes = self.step.others(logits / self.step.scale)
        return self.step.scale * cosines, slopes

    def _to_rows(self, of_classes: Tensor, seen: Seen) -> tuple[Tensor, Tensor]:
        """A gradient (classes, B) at the nearest rows, 0 at others, and the logits; (rows, B)."""
        if seen.nearest is None:
            return of_classes, seen.logits
        copies = self.step.centres.subcentres
        spread = of_classes.new_zeros(len(of_classes), copies, of_classes.shape[1])
        spread.scatter_(1, seen.nearest.long()[:, None], of_classes[:, None])
        return spread.flatten(0, 1), seen.logits.repeat_interleave(copies, dim=0)


def _cut(step: Step, width: int) -> list[Block]:
    """The classes of a step in blocks of `width` rows, each with the own classes among them."""
    sample, copies = step.sample.compact(), step.centres.subcentres
    own_row, own_sample = sample.own()
    count = len(step.centres) // copies if sample.rows is None else len(sample.rows)
    starts = [*range(0, count, max(1, width // copies)), count]
    cuts = torch.searchsorted(own_row, torch.tensor(starts, device=own_row.device)).tolist()
    return [
        Block(
            rows=slice(start * copies, stop * copies)
            if sample.rows is None
            else rows_of_classes(sample.rows[start:stop], copies),
            own_row=own_row[first:last] - start,
            own_sample=own_sample[first:last],
        )
        for start, stop, first, last in zip(starts, starts[1:], cuts, cuts[1:], strict=False)
    ]
