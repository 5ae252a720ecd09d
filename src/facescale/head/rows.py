"""How a class centre is stored: as numbers, in bfloat16, or in 8 bits with a scale a row.

What has fewer bits than its gradients need is rounded up or down at random, in proportion to what
is left over: on average nothing is lost, where rounding to the nearest would lose every small step.
Source: Gupta et al., Deep learning with limited numerical precision, ICML 2015, section 3.
"""

from typing import Protocol

import torch
from torch import Tensor

from facescale.random import generator

LEVELS = 127  # of 8 bits, each way
ROOM = 1.25  # that a new scale leaves above its row's largest number
MIX = 0x9E3779B1  # spreads the places in a pool of random numbers


class RowFormat(Protocol):
    """How (rows, parts, dim) numbers lie in (rows, parts, width) of a stored type."""

    numbers: torch.dtype
    """Of what is computed with."""
    stored: torch.dtype

    extra: int
    """Stored elements of a row beside those of its numbers."""

    def noise(self, count: int, random: torch.Generator) -> Tensor:
        """What rounding of `count` numbers needs; empty where nothing is rounded."""
        ...

    def decode(self, stored: Tensor, out: Tensor) -> Tensor:
        """The numbers (rows, parts, dim): in `out`, or `stored` itself where it holds them."""
        ...

    def encode_(self, stored: Tensor, numbers: Tensor, noise: Tensor | None) -> None:
        """Put `numbers` into `stored`, rounded by `noise` of that shape, or to the nearest.

        May use up `numbers`. Of a row that was there before, `stored` still holds how.
        """
        ...


class Exact:
    """Stored as computed: float32, or float64 for proofs."""

    extra = 0

    def __init__(self, dtype: torch.dtype) -> None:
        self.numbers = self.stored = dtype

    def noise(self, count: int, random: torch.Generator) -> Tensor:  # noqa: D102
        return torch.empty(0, device=random.device)

    def decode(self, stored: Tensor, out: Tensor) -> Tensor:  # noqa: D102
        return stored

    def encode_(self, stored: Tensor, numbers: Tensor, noise: Tensor | None) -> None:  # noqa: D102
        if numbers is not stored:
            stored.copy_(numbers)


class BFloat16:
    """The upper half of a float32: 2 bytes a number."""

    numbers, stored, extra = torch.float32, torch.bfloat16, 0

    def noise(self, count: int, random: torch.Generator) -> Tensor:  # noqa: D102
        shape, device = (count,), random.device
        return torch.randint(1 << 16, shape, generator=random, dtype=torch.int32, device=device)

    def decode(self, stored: Tensor, out: Tensor) -> Tensor:  # noqa: D102
        return out.copy_(stored)

    def encode_(self, stored: Tensor, numbers: Tensor, noise: Tensor | None) -> None:  # noqa: D102
        if noise is not None:
            # A random lower half carries into the upper one as often as what it is added to is
            # large; then it goes.
            numbers.view(torch.int32).add_(noise).bitwise_and_(-(1 << 16))
        stored.copy_(numbers)


class EightBits:
    """A byte a number and a float32 scale a row, which its last four bytes hold.

    The scale stays as long as the row fits into it and fills half of it: a number that does not
    change then stays on its level, and rounding adds noise to what has moved only.
    """

    numbers, stored, extra = torch.float32, torch.uint8, 4

    def noise(self, count: int, random: torch.Generator) -> Tensor:  # noqa: D102
        return torch.rand(count, generator=random, device=random.device)

    def decode(self, stored: Tensor, out: Tensor) -> Tensor:  # noqa: D102
        levels, scale = self._parts(stored, out.shape[-1])
        return out.copy_(levels).mul_(scale)

    def encode_(self, stored: Tensor, numbers: Tensor, noise: Tensor | None) -> None:  # noqa: D102
        levels, scale = self._parts(stored, numbers.shape[-1])
        needed = torch.linalg.vector_norm(numbers, torch.inf, dim=-1, keepdim=True) / LEVELS
        fits = (needed <= scale) & (needed >= scale / 2)
        scale.copy_(torch.where(fits, scale, ROOM * needed))
        numbers.div_(torch.where(scale > 0, scale, 1.0))
        (numbers.add_(0.5) if noise is None else numbers.add_(noise)).floor_()
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


class Rounding:
    """Random numbers for the rounding of one step, drawn once and used from other places on.

    Each number is as likely as if it were drawn for its place; that two places of a step may share
    one does no harm, and drawing would take as long as all the rest of the update.
    """

    def __init__(self, row_format: RowFormat, device: torch.device, *key: int) -> None:
        """`key` decides the numbers: copies of a shard give the same one."""
        self._format, self._device, self._key = row_format, device, key
        self._pool: Tensor | None = None
        self._uses = 0

    def noise(self, shape: torch.Size) -> Tensor | None:
        """For numbers of this shape."""
        count = shape.numel()
        if self._pool is None or (0 < len(self._pool) < count):
            random = generator(self._device, *self._key, self._uses)
            self._pool = self._format.noise(2 * count, random)
        self._uses += 1
        if not len(self._pool):
            return None
        start = self._uses * MIX % (len(self._pool) - count + 1)
        return self._pool[start : start + count].view(shape)
