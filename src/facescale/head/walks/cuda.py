"""The walk over the drawn class centres in Triton kernels, on a CUDA device.

It reads nothing from the device. In Triton's interpreter it serves CPU tensors, for tests.
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from facescale.head.step import Step
from facescale.kernels.cuda import head_kernels_serve

LEAST_ROWS = 1 << 14  # whose logits are computed again at a time: enough to fill a GPU
SHARED_ROWS = 1 << 16  # whose gradients copies of a shard sum up at a time


class CudaWalk:
    """`BlockWalk` by kernels that read each drawn row three times and write it once.

    Empty slots of the sample stay where they are, so all shapes are known to the host. Rows whose
    logits were kept move beside the queue (`aside`), under the backbone's backward pass.
    """

    defers = True

    @staticmethod
    def serves(step: Step) -> bool:
        """Whether it is a plain step, and there are kernels for device, row format and row size."""
        served = head_kernels_serve(step.centres.table, step.centres.dim)
        return served and step.plain_rule is not None

    def __init__(self, step: Step) -> None:
        from facescale.kernels.cuda import head  # not before a device needs it
        from facescale.kernels.cuda.operands import Drawn, Rates

        self.step, rule = step, step.plain_rule
        assert rule is not None, "`serves` has been asked"
        self._kernels = head
        rows = step.sample.rows
        count = len(step.centres) if rows is None else len(rows)
        self._drawn = Drawn(step.centres.table, step.centres.dim, count, rows)
        self._rates = Rates(
            step.lr, rule.momentum, rule.weight_decay, step.key, step.centres.rows.start
        )
        self._batch = step.batch.contiguous()
        if step.products == "bf16":
            self._batch = self._batch.bfloat16()
        samples = max(len(step.batch), 1)
        self._num_kept = min(count, step.logits_budget // (4 * samples))
        self._kept: Tensor | None = None
        self._inverse = step.batch.new_empty(0)

    def forward(self) -> tuple[Tensor, Tensor]:
        """As `Walk.forward`."""
        step = self.step
        step.centres.start_()  # all rows at once, in the first step
        self._kept = step.batch.new_empty(self._num_kept, len(step.batch))
        seen = self._kernels.forward(
            self._drawn, self._batch, step.sample.place, step.scale, step.products, self._kept,
            step.limit,
        )  # fmt: skip
        self._inverse = seen.inverse
        return seen.log_sum, seen.own_cosine

    def backward(
        self, log_sum: Tensor, own_cosine: Tensor, to_own: Tensor, factor: Tensor
    ) -> Tensor:
        """As `Walk.backward`."""
        step, kernels = self.step, self._kernels
        gradient = torch.zeros_like(step.batch)
        later: tuple[Callable[[], None], tuple[Tensor, ...]] | None = None
        for start, stop in self._portions():
            drawn, logits = self._drawn.part(start, stop), self._logits(start, stop)
            radial = kernels.probability_(
                logits, self._inverse[start:stop], log_sum, to_own, step.sample.place, factor,
                step.scale, start, step.limit,
            )  # fmt: skip
            gradient += kernels.to_batch(drawn, logits, step.products)
            learn: Callable[[], None] = partial(self._learn_, start, stop, logits, radial)
            if stop == self._num_kept:
                later = learn, (logits, radial)
            elif step.lr:
                learn()
            del logits, radial, learn  # their memory is for the next portion
        if step.lr and later is not None:
            learn, used = later
            rows = () if step.sample.rows is None else (step.sample.rows,)
            step.centres.aside.run(learn, (*used, *rows, self._batch, step.bad))
        return gradient

    def _learn_(self, start: int, stop: int, product: Tensor, radial: Tensor) -> None:
        """Move the rows of these places."""
        step, kernels = self.step, self._kernels
        if step.replicate.size > 1:
            self._learn_together_(start, stop, product, radial)
            return
        drawn = self._drawn.part(start, stop)
        kernels.update_(drawn, product, self._batch, radial, step.bad, self._rates, step.products)

    def _portions(self) -> Iterator[tuple[int, int]]:
        """Places whose logits were kept, and then others, some at a time."""
        count, kept = self._drawn.count, self._num_kept
        if kept:
            yield 0, kept
        width = max(kept, LEAST_ROWS)
        for start in range(kept, count, width):
            yield start, min(start + width, count)

    def _logits(self, start: int, stop: int) -> Tensor:
        """Logits of these places, to be overwritten."""
        kept = self._kept
        if start == 0 and kept is not None and len(kept) == stop:
            self._kept = None  # gradients lie there from now on
            return kept
        step = self.step
        logits = step.batch.new_empty(stop - start, len(step.batch))
        drawn = self._drawn.part(start, stop)
        self._kernels.logits_again_(drawn, self._batch, step.scale, step.products, logits)
        return logits

    def _learn_together_(self, start: int, stop: int, product: Tensor, radial: Tensor) -> None:
        """Sum up the gradients of all copies, then let each copy learn the sum."""
        step, kernels = self.step, self._kernels
        for first in range(start, stop, SHARED_ROWS):
            last = min(first + SHARED_ROWS, stop)
            drawn, here = self._drawn.part(first, last), slice(first - start, last - start)
            total = kernels.gradient(drawn, product[here], self._batch, radial[here], step.products)
            step.replicate.all_reduce_(total)
            kernels.apply_(drawn, total, step.bad, self._rates)
