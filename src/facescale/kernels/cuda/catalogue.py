"""Launches of all kernels at real sizes, for `resources` to compile."""

import torch

from facescale.kernels.cuda import head, norm
from facescale.kernels.cuda.operands import FORMATS, Drawn, Rates
from facescale.kernels.cuda.resources import Launch, launches
from facescale.kernels.cuda.start import start_
from facescale.kernels.cuda.tiles import Precision

STORED = {name: dtype for dtype, name in FORMATS.items()}
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
        drawn = Drawn(table, dim, rows, index)
        batch = torch.empty(
            samples, dim, dtype=torch.bfloat16 if precision == "bf16" else torch.float32
        )
        own = torch.empty(samples, dtype=torch.int64)
        to_own, logits = torch.empty(samples), torch.empty(rows, samples)
        factor, bad = torch.empty(()), torch.empty(1, dtype=torch.int32)
        rates = Rates(0.1, 0.9, 5e-4)
        start_(drawn, (0, 0), 0, 0.01)
        seen_first = head.forward(drawn, batch, own, 64.0, precision, logits)
        head.logits_again_(drawn, batch, 64.0, precision, logits)
        radial = head.probability_(logits, seen_first.inverse, to_own, to_own, own, factor, 64.0)
        head.to_batch(drawn, logits, precision)
        head.update_(drawn, logits, batch, radial, bad, rates, precision)
        gradient = head.gradient(drawn, logits, batch, radial, precision)
        head.apply_(drawn, gradient, bad, rates)
    return seen


def norm_launches(dtype: torch.dtype, channels: int = 64, size: int = 112) -> list[Launch]:
    """What BatchNorm, PReLU and shortcut launch, for a batch of 64 images of `size` pixels."""
    with torch.device("meta"), launches() as seen:
        x = torch.empty(64, channels, size, size, dtype=dtype)
        x = x.to(memory_format=torch.channels_last)
        values = torch.empty(channels)
        for slope in (values, None):
            parameters = norm.Parameters(values, values, slope)
            norm.batch_norm(x, parameters, values, values, momentum=0.1, eps=1e-5, shortcut=x)
            norm.batch_norm_backward(x, x, parameters, values, values)
    return seen
