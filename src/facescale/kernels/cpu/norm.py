"""What the native kernels know of a BatchNorm in training, and of the PReLU behind it."""

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from facescale.kernels.cpu.dispatch import address


class BatchNorm2d(nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d`, which `in_sequence` may take along in a chain of native kernels."""


class Norm(ctypes.Structure):
    """As `Norm` in native/norm.h; it points into tensors, which have to outlive it."""

    _fields_ = (
        ("rows", ctypes.c_int64),
        ("channels", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("weight", "bias", "slope", "mean", "inverse")),
        *((name, ctypes.c_void_p) for name in ("running_mean", "running_variance", "totals")),
        ("eps", ctypes.c_float),
        ("momentum", ctypes.c_float),
    )


def forward_norm(
    norm: nn.BatchNorm2d, prelu: nn.PReLU | None, image: Tensor, statistics: Tensor
) -> Norm:
    """For the forward pass over `image` (b, c, h, w), which sets `statistics` (2, c)."""
    slope = None if prelu is None else prelu.weight
    structure = backward_norm(image, (norm.weight, norm.bias, slope), statistics, None)
    structure.running_mean = address(norm.running_mean)
    structure.running_variance = address(norm.running_var)
    structure.eps, structure.momentum = norm.eps, norm.momentum
    return structure


def backward_norm(
    image: Tensor, parameters: Sequence[Tensor | None], statistics: Tensor, totals: Tensor | None
) -> Norm:
    """For the backward pass: mean and 1 / deviation (2, c) are known, `totals` (3, c) are not.

    `parameters` are weight, bias and the slope of PReLU or None.
    """
    channels = statistics.shape[1]
    pointers = map(address, (*parameters, *statistics, None, None, totals))
    return Norm(image.numel() // channels, channels, *pointers)


def gradients(totals: Tensor, statistics: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Those of weight, bias and slope, (c,) each, from the sums of a backward pass (3, c)."""
    to_bias, to_weight, to_slope = totals.to(torch.float32)
    return to_weight * statistics[1], to_bias, to_slope
