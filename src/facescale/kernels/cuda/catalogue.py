"""Launches of all kernels at real sizes, for `resources` to compile."""

import torch

from facescale.kernels.cuda import head
from facescale.kernels.cuda.resources import Launch, launches
from facescale.kernels.cuda.start import start_
from facescale.kernels.cuda.tiles import Precision

STORED = {name: dtype for dtype, name in head.FORMATS.items()}
ROWS, SAMPLES, DIM = 36_151, 128, 512  # 360,232 identities at 0.1


def head_launches(
    row_format: str,
    precision: Precision,
    *,
    rows: int = ROWS,
    samples: int = SAMPLES,
    dim: int = DIM,
    parts: int = 2,
    gather: bool = True,
) -> list[Launch]:
    """What a step of the head launches, by one rank and by copies of a shard."""
    width = dim + 4 * (row_format == "int8")
    with torch.device("meta"), launches() as seen:
        table = torch.empty(10 * rows, parts, width, dtype=STORED[row_format])
        index = torch.empty(rows, dtype=torch.int64) if gather else None
        drawn = head.Drawn(table, dim, rows, index)
        batch = torch.empty(
            samples, dim, dtype=torch.bfloat16 if precision == "bf16" else torch.float32
        )
        own = torch.empty(samples, dtype=torch.int64)
        to_own, logits = torch.empty(samples), torch.empty(rows, samples)
        factor, bad = torch.empty(()), torch.empty(1, dtype=torch.int32)
        rates = head.Rates(0.1, 0.9, 5e-4)
        start_(drawn, (0, 0), 0, 0.01)
        seen_first = head.forward(drawn, batch, own, 64.0, precision, logits)
        head.logits_again_(drawn, batch, 64.0, precision, logits)
        radial = head.probability_(logits, seen_first.inverse, to_own, to_own, own, factor, 64.0)
        head.to_batch(drawn, logits, precision)
        head.update_(drawn, logits, batch, radial, bad, rates, precision)
        gradient = head.gradient(drawn, logits, batch, radial, precision)
        head.apply_(drawn, gradient, bad, rates)
    return seen
