"""BatchNorm in training with the PReLU behind it and the sum with a shortcut, on a CUDA device.

An image is channels_last, or (rows, channels): the memory is read and written in that order.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from facescale.kernels.cuda.norm_kernels import (
    join_moments_kernel,
    moments_kernel,
    norm_backward_kernel,
    norm_sums_kernel,
    normalize_kernel,
)
from facescale.kernels.cuda.norm_parameters import Parameters, of_parameters
from facescale.kernels.cuda.tiles import power_of_2

ELEMENTS = 4096  # of a tile
MOMENT_SPLITS = 512  # programs, at least, over which the sums of a forward pass are spread
SUM_SPLITS = 264  # the same of a backward pass, whose programs hold more sums
CHANNELS = 128  # of a tile, at most


class Shape(NamedTuple):
    """How an image is cut into tiles."""

    rows: int
    channels: int
    tile_rows: int
    tile_channels: int

    @property
    def across(self) -> int:
        """Tiles side by side."""
        return -(-self.channels // self.tile_channels)

    @property
    def tiles(self) -> int:
        """All tiles."""
        return -(-self.rows // self.tile_rows) * self.across

    def splits(self, programs: int) -> tuple[int, int]:
        """Parts of the rows whose sums are taken apart, and rows of a part."""
        wanted = -(-programs // self.across)
        rows = -(-self.rows // (wanted * self.tile_rows)) * self.tile_rows
        return -(-self.rows // rows), rows


def batch_norm(
    x: Tensor,
    parameters: Parameters,
    running_mean: Tensor,
    running_variance: Tensor,
    *,
    momentum: float,
    eps: float,
    shortcut: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """prelu(batch_norm(x)) + shortcut by the statistics of `x`; moves the running ones.

    Args:
        x: (b, C, h, w), channels_last, or (b, C); float32, bfloat16 or float16; not empty.
        parameters: Without a slope there is no PReLU.
        running_mean: (C,) float32.
        running_variance: (C,) float32.
        momentum: Weight of these statistics in the running ones.
        eps: Added to the variance.
        shortcut: As `x`, or None.

    Returns:
        The sum, as `x`; mean and 1 / deviation of each channel, (C,) float32.
    """
    shape = _shape(x)
    splits, split_rows = shape.splits(MOMENT_SPLITS)
    means, squares = x.new_empty(2, splits, shape.channels, dtype=torch.float32)
    mean, inverse = means.new_empty(2, shape.channels)
    moments_kernel[(splits * shape.across,)](
        x, means, squares, shape.rows, split_rows,
        C=shape.channels, R=shape.tile_rows, BC=shape.tile_channels, num_warps=8,
    )  # fmt: skip
    join_moments_kernel[(-(-shape.channels // 16),)](
        means, squares, mean, inverse, running_mean, running_variance, splits, shape.rows,
        split_rows, momentum, eps, C=shape.channels, P=64, BC=16, num_warps=4,
    )  # fmt: skip
    return normalize(x, parameters, mean, inverse, shortcut), mean, inverse


def normalize(
    x: Tensor, parameters: Parameters, mean: Tensor, inverse: Tensor, shortcut: Tensor | None = None
) -> Tensor:
    """prelu(weight * (x - mean) * inverse + bias) + shortcut, as `x`."""
    shape, y = _shape(x), torch.empty_like(x)
    if shortcut is not None:
        _shape(shortcut)
    slope = parameters.slope
    normalize_kernel[(shape.tiles,)](
        x, mean, inverse, parameters.weight, parameters.bias, _slope(parameters, shape),
        x if shortcut is None else shortcut, y, shape.rows,
        C=shape.channels, ACT=slope is not None, SUM=shortcut is not None,
        R=shape.tile_rows, BC=shape.tile_channels, num_warps=8,
    )  # fmt: skip
    return y


def batch_norm_backward(
    gradient: Tensor,
    x: Tensor,
    parameters: Parameters,
    mean: Tensor,
    inverse: Tensor,
    *,
    training: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Gradients of x, weight, bias and slope; that of a shortcut is `gradient` itself.

    Args:
        gradient: Of what `batch_norm` returned; as `x`.
        x: As in `batch_norm`.
        parameters: As in `batch_norm`.
        mean: As `batch_norm` returned it, or running statistics.
        inverse: As `mean`.
        training: Whether mean and deviation are those of `x` and depend on it.
    """
    to_x, totals = gradients(gradient, x, parameters, mean, inverse, training=training)
    return to_x, *of_parameters(totals, parameters.slope)


def gradients(
    gradient: Tensor,
    x: Tensor,
    parameters: Parameters,
    mean: Tensor,
    inverse: Tensor,
    *,
    training: bool = True,
) -> tuple[Tensor, Tensor]:
    """As `batch_norm_backward`: of x, and those of the parameters by channel, (3, C)."""
    shape, gradient = _shape(x), _like(gradient, x)
    slope, act = _slope(parameters, shape), parameters.slope is not None
    splits, split_rows = shape.splits(SUM_SPLITS)
    sums = x.new_empty(3, splits, shape.channels, dtype=torch.float32)
    given = (x, gradient, mean, inverse, parameters.weight, parameters.bias, slope)
    norm_sums_kernel[(splits * shape.across,)](
        *given, sums, splits, shape.rows, split_rows,
        C=shape.channels, ACT=act, R=shape.tile_rows, BC=shape.tile_channels, num_warps=8,
    )  # fmt: skip
    totals, to_x = sums.sum(1), torch.empty_like(x)
    norm_backward_kernel[(shape.tiles,)](
        *given, totals, to_x, shape.rows, C=shape.channels, ACT=act, TRAINING=training,
        R=shape.tile_rows, BC=shape.tile_channels, num_warps=8,
    )  # fmt: skip
    return to_x, totals


def _shape(x: Tensor) -> Shape:
    channels = x.shape[1]
    layout = torch.channels_last if x.ndim == 4 else torch.contiguous_format
    assert x.is_contiguous(memory_format=layout), "an image has to be channels_last"
    width = min(CHANNELS, power_of_2(channels))
    return Shape(x.numel() // channels, channels, ELEMENTS // width, width)


def _like(gradient: Tensor, x: Tensor) -> Tensor:
    """`gradient` in the layout of `x`."""
    return gradient.contiguous(
        memory_format=torch.channels_last if x.ndim == 4 else torch.contiguous_format
    )


def _slope(parameters: Parameters, shape: Shape) -> Tensor:
    """A slope for each channel; any tensor where there is no PReLU."""
    weight, _, slope = parameters
    return weight if slope is None else slope.expand(shape.channels).contiguous()
