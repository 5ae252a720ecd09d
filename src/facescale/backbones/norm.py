"""BatchNorm that in training takes along the PReLU and the sum behind it, natively on CPUs."""

import ctypes
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

from facescale.native.kernels import address, kernels


class BatchNorm2d(nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d`: the same values, weights and gradients.

    In training on a CPU, BatchNorm and PReLU are half of MobileFaceNet's step, all of it memory
    traffic. A native kernel computes both in two passes, two more backward, and keeps the image
    alone; see `kernels` for what it takes.
    """

    def forward(
        self, input: Tensor, prelu: nn.PReLU | None = None, shortcut: Tensor | None = None
    ) -> Tensor:
        """(b, c, h, w) to the same shape: `prelu(norm(input)) + shortcut`, without what is None."""
        is_plain = self.affine and self.track_running_stats and self.momentum is not None
        # of one number a channel torch complains
        if self.training and is_plain and input.numel() > self.num_features:
            slope = None if prelu is None else prelu.weight
            tensors = (input, self.weight, self.bias, slope, shortcut)
            native = kernels("norm", *tensors, self.running_mean, self.running_var)
            if native is not None:
                assert self.num_batches_tracked is not None
                self.num_batches_tracked += 1
                return _Normalise.apply(native, self, *tensors)  # type: ignore[no-any-return,no-untyped-call]
        output = super().forward(input)
        output = output if prelu is None else prelu(output)
        return output if shortcut is None else output + shortcut


def in_sequence(layers: Iterable[nn.Module], x: Tensor, shortcut: Tensor | None = None) -> Tensor:
    """What `layers` make of `x` one after the other, plus `shortcut` (b, c, h, w) if there is one.

    A `BatchNorm2d` takes along the PReLU that follows it, and the sum where it is the last.
    """
    remaining = list(layers)
    while remaining:
        layer = remaining.pop(0)
        if isinstance(layer, BatchNorm2d):
            follows = bool(remaining) and isinstance(remaining[0], nn.PReLU)
            prelu = remaining.pop(0) if follows else None
            is_last = not remaining
            x = layer(x, prelu, shortcut if is_last else None)
            if is_last:
                return x
        else:
            x = layer(x)
    return x if shortcut is None else x + shortcut


class _Channels(ctypes.Structure):
    """As `Channels` in native/norm.cpp."""

    _fields_ = (
        ("rows", ctypes.c_int64),
        ("channels", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("weight", "bias", "slope", "mean", "inverse")),
    )


def _channels(
    x: Tensor, weight: Tensor, bias: Tensor, slope: Tensor | None, statistics: Tensor
) -> _Channels:
    channels = len(weight)
    pointers = (address(t) for t in (weight, bias, slope, *statistics))
    return _Channels(x.numel() // channels, channels, *pointers)


class _Normalise(torch.autograd.Function):
    """`BatchNorm2d` in training, by the native kernel."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        native: Any,
        norm: BatchNorm2d,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        slope: Tensor | None,
        shortcut: Tensor | None,
    ) -> Tensor:
        statistics = torch.empty(2, len(weight))
        output = torch.empty_like(x)
        native.norm_forward(
            ctypes.byref(_channels(x, weight, bias, slope, statistics)),
            address(x),
            address(shortcut),
            ctypes.c_float(norm.eps),
            ctypes.c_float(norm.momentum),  # type: ignore[arg-type]
            address(norm.running_mean),
            address(norm.running_var),
            address(output),
        )
        ctx.save_for_backward(x, weight, bias, slope, statistics)  # type: ignore[arg-type]
        ctx.native, ctx.has_shortcut = native, shortcut is not None  # type: ignore[attr-defined]
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, slope, statistics = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        to_x = torch.empty_like(x)
        to_bias, to_weight, to_slope = torch.empty(3, len(weight))
        ctx.native.norm_backward(
            ctypes.byref(_channels(x, weight, bias, slope, statistics)),
            *(address(t) for t in (x, gradient, to_x, to_bias, to_weight, to_slope)),
        )
        return (
            None,
            None,
            to_x,
            to_weight,
            to_bias,
            None if slope is None else to_slope,
            gradient if ctx.has_shortcut else None,
        )
