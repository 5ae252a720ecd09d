"""What the head's operators work on: the drawn rows of a table, and the rates of a step."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

FORMATS = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.uint8: "int8"}


@dataclass(frozen=True)
class Drawn:
    """The `count` rows of a table that a step walks over.

    Attributes:
        table: (rows, parts, width), contiguous: the weight, then the momentum if there is one.
            float32 or bfloat16 with a width of `dim`, or uint8 with a width of `dim` + 4: int8
            levels and a float32 scale. 16 divides `dim`.
        dim: Numbers of a row.
        count: How many rows.
        index: Their numbers, (count,) int64, all different; a negative one marks a place that is
            not in use. None: the rows from `first` on.
        first: The first row where there is no `index`.
    """

    table: Tensor
    dim: int
    count: int
    index: Tensor | None = None
    first: int = 0

    def part(self, start: int, stop: int) -> "Drawn":
        """Places [start, stop) of these rows."""
        index = None if self.index is None else self.index[start:stop]
        return replace(self, count=stop - start, index=index, first=self.first + start)

    def pointers(self) -> tuple[Tensor, Tensor, Tensor]:
        """The table, its memory as float32 where scales lie there, and the row numbers."""
        table = self.table
        index = table if self.index is None else self.index
        if table.dtype != torch.uint8:
            return table, table, index
        return table.view(torch.int8), table.view(torch.float32), index

    def constants(self) -> dict[str, Any]:
        """What a kernel for these rows is compiled for."""
        return {
            "PARTS": self.table.shape[1],
            "D": self.dim,
            "FORMAT": FORMATS[self.table.dtype],
            "GATHER": self.index is not None,
        }


@dataclass(frozen=True)
class Rates:
    """SGD's numbers for one step, and the key of its random rounding.

    Attributes:
        lr: Learning rate.
        momentum: Factor on the momentum that was there.
        decay: Weight decay.
        key: Two words of 32 bits; with class, part and column they decide how a number is rounded.
        first_class: The class of row 0 of the table.
    """

    lr: float
    momentum: float
    decay: float
    key: tuple[int, int] = (0, 0)
    first_class: int = 0

    def arguments(self) -> tuple[float, float, float, int, int, int]:
        """As the kernels take them."""
        return self.momentum, self.decay, self.lr, *signed(self.key), self.first_class


def signed(key: tuple[int, int]) -> tuple[int, int]:
    """The words of a key as int32, so that a kernel is not compiled again for large ones."""
    low, high = (word - ((word & 0x80000000) << 1) for word in key)
    return low, high
