"""Operators of a BatchNorm in training, with the PReLU behind it and a shortcut added.

A norm is given as a list of tensors: weight, bias, statistics and, if a PReLU follows, its slope;
(c,) each but the statistics of the batch, (3, c): mean, 1 / deviation and unbiased variance. Images
are (b, c, h, w), float32, channels last. The totals of a backward pass, (3, c) in float64, hold the
sums from which the gradients of bias, weight and slope follow.
"""

import ctypes

import torch
from torch import Tensor

from facescale.kernels.cpu.operators import address, define_native, native


class Norm(ctypes.Structure):
    """As `Norm` in norm.h; it points into tensors, which have to outlive it."""

    _fields_ = (
        ("rows", ctypes.c_int64),
        ("channels", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("weight", "bias", "slope")),
        *((name, ctypes.c_void_p) for name in ("mean", "inverse", "variance", "totals")),
        ("eps", ctypes.c_float),
    )


def pointer(
    image: Tensor, norm: list[Tensor], totals: Tensor | None = None, eps: float = 0.0
) -> "ctypes._Pointer[Norm] | None":
    """For a native function: the norm of `image`; None if `norm` is empty, which is none."""
    if not norm:
        return None
    weight, bias, statistics, *slope = norm
    known = address(weight), address(bias), address(slope[0] if slope else None)
    return ctypes.pointer(_norm(image, known, statistics, totals, eps))


def statistics_pointer(image: Tensor, statistics: Tensor, eps: float) -> "ctypes._Pointer[Norm]":
    """For a native function that sets the statistics (3, c) of the norm behind `image`."""
    nothing = address(None)
    return ctypes.pointer(_norm(image, (nothing, nothing, nothing), statistics, None, eps))


def _norm(
    image: Tensor,
    parameters: tuple[ctypes.c_void_p, ...],
    statistics: Tensor,
    totals: Tensor | None,
    eps: float,
) -> Norm:
    channels = statistics.shape[1]
    rows = image.numel() // channels
    first = address(statistics).value or 0
    places = (first + 4 * channels * row for row in range(3))
    return Norm(rows, channels, *parameters, *places, address(totals), eps)


def empty_statistics(channels: int) -> Tensor:
    """Room for the statistics of a norm."""
    return torch.empty(3, channels)


def empty_totals(channels: int) -> Tensor:
    """Room for the totals of a norm."""
    return torch.empty(3, channels, dtype=torch.float64)


def _statistics_fill(x: Tensor, eps: float, statistics: Tensor) -> None:
    native("norm").norm_statistics(statistics_pointer(x, statistics, eps), address(x))


statistics = define_native(
    "norm_statistics(Tensor x, float eps) -> Tensor",
    lambda x, eps: empty_statistics(x.shape[1]),
    _statistics_fill,
)
"""The statistics of `x` as a batch."""


def _apply_fill(x: Tensor, norm: list[Tensor], shortcut: Tensor | None, y: Tensor) -> None:
    native("norm").norm_apply(pointer(x, norm), *map(address, (x, shortcut, y)))


apply = define_native(
    "norm_apply(Tensor x, Tensor[] norm, Tensor? shortcut) -> Tensor",
    lambda x, norm, shortcut: torch.empty_like(x),
    _apply_fill,
)
"""PReLU of the normalised `x`, plus `shortcut` if there is one."""


def _sums_fill(x: Tensor, norm: list[Tensor], gradient: Tensor, totals: Tensor) -> None:
    native("norm").norm_sums(pointer(x, norm, totals), address(x), address(gradient))


sums = define_native(
    "norm_sums(Tensor x, Tensor[] norm, Tensor gradient) -> Tensor",
    lambda x, norm, gradient: empty_totals(x.shape[1]),
    _sums_fill,
)
"""The totals, from the gradient of what the norm made of `x`."""


def _derivative_fill(
    x: Tensor, norm: list[Tensor], totals: Tensor, gradient: Tensor, to_x: Tensor
) -> None:
    native("norm").norm_derivative(pointer(x, norm, totals), *map(address, (x, gradient, to_x)))


derivative = define_native(
    "norm_derivative(Tensor x, Tensor[] norm, Tensor totals, Tensor gradient) -> Tensor",
    lambda x, norm, totals, gradient: torch.empty_like(x),
    _derivative_fill,
)
"""The gradient of `x`, from the totals and the gradient of what the norm made of it."""


def parameter_gradients(totals: Tensor, norm: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of weight, bias and slope, (c,) each."""
    to_bias, to_weight, to_slope = totals.to(torch.float32).unbind()
    return to_weight * norm[2][1], to_bias, to_slope
