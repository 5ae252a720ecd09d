"""The class centres of one shard: a weight row and a momentum row a class, side by side."""

import torch
from torch import Tensor, nn

from facescale.allocator import use_huge_pages
from facescale.distributed import Group, shard_range
from facescale.seeding import generator

CHUNK = 4096  # classes that share one random stream, so that no start depends on the sharding
INIT_STD = 0.01  # of every system that this field trains with

Rows = slice | Tensor
"""Rows of a shard: a slice, which is a view and copies nothing, or sorted row numbers (k,)."""


class ClassCentres(nn.Module):
    """Rows [first, last) of the matrix of class centres (num_classes, dim), with their momentum.

    `table[row]` is (2, dim): the weight, then the momentum. One row of both is one place in
    memory, so that a drawn class costs one page and not two.
    """

    table: Tensor

    def __init__(
        self,
        num_classes: int,
        dim: int,
        shard: Group,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        seed: int = 0,
    ) -> None:
        super().__init__()
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(f"class centres are float32 or float64, got {dtype}")
        self.num_classes, self.dim, self.shard = num_classes, dim, shard
        self.classes = shard_range(num_classes, shard.size, shard.rank)
        self.register_buffer(
            "table", torch.zeros(len(self.classes), 2, dim, dtype=dtype, device=device)
        )
        use_huge_pages(self.table)
        self._copied = self.table.new_empty(0)
        self._initialise_(seed)

    def __len__(self) -> int:
        return len(self.classes)

    @torch.no_grad()
    def _initialise_(self, seed: int) -> None:
        """Draw N(0, 0.01) rows, chunk by chunk of the whole matrix: equal for any sharding."""
        if not self.classes:
            return
        for chunk in range(self.classes.start // CHUNK, (self.classes.stop - 1) // CHUNK + 1):
            classes = range(chunk * CHUNK, min((chunk + 1) * CHUNK, self.num_classes))
            device = self.table.device
            random = generator(device, seed, chunk)
            rows = torch.randn(len(classes), self.dim, generator=random, device=device)
            first = max(classes.start, self.classes.start)
            last = min(classes.stop, self.classes.stop)
            self.table[first - self.classes.start : last - self.classes.start, 0] = (
                rows[first - classes.start : last - classes.start] * INIT_STD
            )

    def weight(self, rows: Rows) -> Tensor:
        """The centres of `rows`, not normalised; (k, dim). As `read`, good until the next call."""
        weights = self.table[:, 0]
        if isinstance(rows, slice):
            return weights[rows]
        return torch.index_select(weights, 0, rows, out=self._room(len(rows), 1)[:, 0])

    def read(self, rows: Rows) -> Tensor:
        """Weight and momentum of `rows`, (k, 2, dim), to be changed and given to `write_`.

        A view of the table for a slice; else a copy, in memory that the next `read` or `weight`
        uses again: fresh memory would have to be zeroed by the kernel, block by block.
        """
        if isinstance(rows, slice):
            return self.table[rows]
        state = self._room(len(rows), 2)
        torch.index_select(self.table.flatten(1), 0, rows, out=state.flatten(1))
        return state

    def write_(self, rows: Rows, state: Tensor) -> None:
        """Put back what `read(rows)` gave, changed. Other rows keep every bit."""
        if isinstance(rows, Tensor):
            self.table[rows] = state

    def _room(self, num_rows: int, parts: int) -> Tensor:
        """Memory for a block of copied rows, (num_rows, parts, dim)."""
        needed = num_rows * 2 * self.dim
        if self._copied.numel() < needed or self._copied.device != self.table.device:
            self._copied = self.table.new_empty(needed)
        return self._copied[: num_rows * parts * self.dim].view(num_rows, parts, self.dim)

    def full(self) -> Tensor:
        """The whole matrix (num_classes, dim) on every rank, by a collective; for small ones."""
        return self.shard.gather_rows(self.table[:, 0])
