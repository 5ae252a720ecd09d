"""How a class centre is stored: as numbers, in bfloat16, or in 8 bits with a scale a row.

Numbers with fewer bits than their updates need are rounded up or down at random, with the
probability that makes the mean exact; rounding to the nearest would lose every small step.
Source: Gupta et al., Deep learning with limited numerical precision, ICML 2015, section 3.
"""

from typing import Protocol

import torch
from torch import Tensor

from facescale.random import UNIT

LEVELS = 127  # of 8 bits, each way
ROOM = 1.25  # that a new scale leaves above its row's largest number


class RowFormat(Protocol):
    """How (rows, parts, dim) numbers lie in (rows, parts, width) of a stored type."""

    numbers: torch.dtype
    """Of what is computed with."""
    stored: torch.dtype

    extra: int
    """Stored elements of a row beside those of its numbers."""
    rounds: bool
    """Whether a number may have to be rounded."""

    def decode(self, stored: Tensor, out: Tensor) -> Tensor:
        """The numbers (rows, parts, dim): in `out`, or `stored` itself where it holds them."""
        ...

    def encode_(self, stored: Tensor, numbers: Tensor, bits: Tensor | None) -> None:
        """Put `numbers` into `stored`: rounded by 32 random `bits` a number, or to the nearest.

        May overwrite `numbers`. `stored` still holds the format of the row that was there before.
        """
        ...


class Exact:
    """Stored as computed: float32, or float64 for proofs."""

    extra, rounds = 0, False

    def __init__(self, dtype: torch.dtype) -> None:
        self.numbers = self.stored = dtype

    def decode(self, stored: Tensor, out: Tensor) -> Tensor:  # noqa: D102
        return stored

    def encode_(self, stored: Tensor, numbers: Tensor, bits: Tensor | None) -> None:  # noqa: D102
        if numbers is not stored:
            stored.copy_(numbers)


class BFloat16:
    """The upper half of a float32: 2 bytes a number."""

    numbers, stored, extra, rounds = torch.float32, torch.bfloat16, 0, True

    def decode(self, stored: Tensor, out: Tensor) -> Tensor:  # noqa: D102
        return out.copy_(stored)

    def encode_(self, stored: Tensor, numbers: Tensor, bits: Tensor | None) -> None:  # noqa: D102
        if bits is not None:
            # A random lower half carries into the upper one with the probability that the lower
            # half is of 2**16; then it is cut off.
            numbers.view(torch.int32).add_(bits & 0xFFFF).bitwise_and_(-(1 << 16))
        stored.copy_(numbers)


class EightBits:
    """A byte a number and a float32 scale a row, which its last four bytes hold.

    The scale stays as long as the row fits into it and fills half of it: a number that does not
    change then stays on its level, and rounding adds noise only to what has moved. A row with a
    number that is not finite gets a scale that is not finite, so that a step that reads it is
    stopped.
    """

    numbers, stored, extra, rounds = torch.float32, torch.uint8, 4, True

    def decode(self, stored: Tensor, out: Tensor) -> Tensor:  # noqa: D102
        levels, scale = self._parts(stored, out.shape[-1])
        return out.copy_(levels).mul_(scale)

    def encode_(self, stored: Tensor, numbers: Tensor, bits: Tensor | None) -> None:  # noqa: D102
        levels, scale = self._parts(stored, numbers.shape[-1])
        needed = torch.linalg.vector_norm(numbers, torch.inf, dim=-1, keepdim=True) / LEVELS
        fits = (needed <= scale) & (needed >= scale / 2)
        scale.copy_(torch.where(fits, scale, ROOM * needed))
        numbers.div_(torch.where(scale > 0, scale, 1.0))
        numbers.add_(0.5 if bits is None else (bits >> 8).float() * UNIT).floor_()
        levels.copy_(numbers.clamp_(-LEVELS, LEVELS))

    @staticmethod
    def _parts(stored: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        """Views: (rows, parts, dim) int8 levels and (rows, parts, 1) scales."""
        return stored[..., :dim].view(torch.int8), stored[..., -4:].view(torch.float32)


FORMATS: dict[torch.dtype, RowFormat] = {
    torch.float32: Exact(torch.float32),
    torch.float64: Exact(torch.float64),
    torch.bfloat16: BFloat16(),
    torch.int8: EightBits(),
}
