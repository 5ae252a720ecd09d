"""Operators of a convolution fused with the BatchNorm before it and the one behind it.

Pointwise convolutions (1x1, stride 1, one group), and 3x3 convolutions of padding 1 in groups of
one or two channels, stride 1 or 2; without bias. Images are (b, c, h, w), weights (c', channels of
a group, k, k), both float32 and channels last. `norm.py` says how a norm is passed; an empty list
means no norm. For groups of two channels torch only has a loop over 2 x 2 matrices.
"""

import ctypes
from typing import Any

import torch
from torch import Tensor

from facescale.kernels.cpu.norm import empty_statistics, empty_totals, pointer, statistics_pointer
from facescale.kernels.cpu.operators import (
    address,
    channels_last,
    define_gradient,
    define_native,
    images,
    native,
)


class _Pointwise(ctypes.Structure):
    """As `Pointwise` in pointwise.cpp."""

    _fields_ = tuple((name, ctypes.c_int64) for name in ("rows", "inputs", "outputs"))


class _Depthwise(ctypes.Structure):
    """As `Depthwise` in taps.h."""

    _fields_ = tuple(
        (name, ctypes.c_int64)
        for name in ("images", "height", "width", "channels", "stride", "group")
    )


def _kernel(way: str, x: Tensor, weight: Tensor, stride: int) -> tuple[Any, Any]:
    """The native function for this kind of convolution, and its first argument."""
    outputs, group = weight.shape[:2]
    batch, channels, height, width = x.shape
    arguments: ctypes.Structure
    if weight.shape[2] == 1:
        name, arguments = "pointwise", _Pointwise(x.numel() // channels, channels, outputs)
    else:
        name = "depthwise"
        arguments = _Depthwise(batch, height, width, channels, stride, group)
    return getattr(native(name), f"{name}_{way}"), ctypes.byref(arguments)


def _output(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    height, width = x.shape[2:]
    return images((len(x), len(weight), -(-height // stride), -(-width // stride)))


def _allocate(x: Tensor, weight: Tensor, stride: int, *_: Any) -> tuple[Tensor, Tensor]:
    return _output(x, weight, stride), empty_statistics(len(weight))


def _fill(
    x: Tensor,
    weight: Tensor,
    stride: int,
    before: list[Tensor],
    eps: float,
    z: Tensor,
    statistics: Tensor,
) -> None:
    function, arguments = _kernel("forward", x, weight, stride)
    behind = statistics_pointer(z, statistics, eps)
    norm = pointer(x, before)
    function(arguments, norm, address(x), address(weight), behind, address(z))


conv_between = define_native(
    "conv_between(Tensor x, Tensor weight, int stride, Tensor[] before, float eps) "
    "-> (Tensor, Tensor)",
    _allocate,
    _fill,
)
"""The convolution of `x` after the norm before it, and the statistics of the norm behind it."""


def _allocate_backward(
    gradient: Tensor, x: Tensor, weight: Tensor, stride: int, before: list[Tensor], *_: Any
) -> tuple[Tensor, Tensor, Tensor]:
    sums = empty_totals(x.shape[1] if before else 0)
    return torch.empty_like(x), torch.empty_like(weight), sums


def _fill_backward(
    gradient: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: int,
    before: list[Tensor],
    z: Tensor,
    behind: list[Tensor],
    totals: Tensor,
    shortcut: Tensor | None,
    to_x: Tensor,
    to_weight: Tensor,
    sums: Tensor,
) -> None:
    function, arguments = _kernel("backward", x, weight, stride)
    norms = pointer(x, before, sums), pointer(z, behind, totals)
    given = address(x), address(weight)
    others = map(address, (z, gradient, shortcut, to_x, to_weight))
    function(arguments, norms[0], *given, norms[1], *others)


conv_between_backward = define_native(
    "conv_between_backward(Tensor gradient, Tensor x, Tensor weight, int stride, "
    "Tensor[] before, Tensor z, Tensor[] behind, Tensor totals, Tensor? shortcut) "
    "-> (Tensor, Tensor, Tensor)",
    _allocate_backward,
    _fill_backward,
)
"""The gradients of the convolution's input and weights, and the totals of the norm before it.

`gradient` is that of the output of the norm behind, `totals` are that norm's. `shortcut` is added
to the gradient of `x`.
"""


def _fill_grouped(x: Tensor, weight: Tensor, stride: int, y: Tensor) -> None:
    function, arguments = _kernel("forward", x, weight, stride)
    function(arguments, None, address(x), address(weight), None, address(y))


grouped_conv = define_native(
    "grouped_conv(Tensor x, Tensor weight, int stride) -> Tensor", _output, _fill_grouped
)
"""A 3x3 convolution in groups of one or two channels by itself; differentiable."""


def _fill_grouped_backward(
    gradient: Tensor, x: Tensor, weight: Tensor, stride: int, to_x: Tensor, to_weight: Tensor
) -> None:
    function, arguments = _kernel("backward", x, weight, stride)
    given = address(x), address(weight)
    others = map(address, (None, gradient, None, to_x, to_weight))
    function(arguments, None, *given, None, *others)


grouped_conv_backward = define_native(
    "grouped_conv_backward(Tensor gradient, Tensor x, Tensor weight, int stride) "
    "-> (Tensor, Tensor)",
    lambda gradient, x, weight, stride: (torch.empty_like(x), torch.empty_like(weight)),
    _fill_grouped_backward,
)
"""The gradients of image and weights."""


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, ctx.stride = inputs
    ctx.save_for_backward(x, weight)


def _gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
    to_x, to_weight = grouped_conv_backward(channels_last(gradient), *ctx.saved_tensors, ctx.stride)
    return to_x, to_weight, None


define_gradient(grouped_conv, _keep, _gradients)
