"""The draw of a step's rows on a CUDA device: one launch, where torch takes thousands."""

import torch
from torch import Tensor

from facescale.kernels.cuda.draw_kernel import draw_kernel
from facescale.kernels.cuda.operands import signed
from facescale.random import Permutation

SLOTS = 512  # drawn rows of a program
SAMPLES = 32  # of a program that looks for the batch's classes


def draw_rows(own: Tensor, num_sample: int, permutation: Permutation) -> tuple[Tensor, Tensor]:
    """As `facescale.head.draw.draw_rows`, whose rows are those of `permutation`.

    Args:
        own: (B,) int64.
        num_sample: At most the size of `permutation`.
        permutation: Of at least one row; of whole numbers.
    """
    drawn = own.new_empty(num_sample + len(own))
    place = torch.empty_like(own)
    low, high = permutation.key
    grid = -(-num_sample // SLOTS) + -(-len(own) // SAMPLES)
    if grid:
        draw_kernel[(grid,)](
            own.contiguous(), drawn, place, permutation.size, num_sample, len(own),
            *permutation.sides, permutation.walks, *signed((low, high)),
            N=SLOTS, S=SAMPLES, num_warps=4,
        )  # fmt: skip
    return drawn, place
