"""3x3 convolutions in groups of one or two channels, natively on CPUs."""

import ctypes
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from facescale.native.kernels import address


class Depthwise(torch.autograd.Function):
    """A convolution of padding 1 and stride 1 or 2; its gradients are one pass.

    For groups of two torch has nothing but a loop over matrices of 2 x 2.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, native: Any, x: Tensor, weight: Tensor, stride: int) -> Tensor:
        """Images (b, c, h, w) and weights (c, 1 or 2, 3, 3), channels last, to (b, c, h', w')."""
        images, channels, height, width = x.shape
        output = torch.empty(
            (images, channels, -(-height // stride), -(-width // stride)),
            memory_format=torch.channels_last,
        )
        native.depthwise_forward(
            ctypes.byref(_arguments(x, weight, stride)), *map(address, (x, weight, output))
        )
        ctx.save_for_backward(x, weight)
        ctx.native, ctx.stride = native, stride  # type: ignore[attr-defined]
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor, Tensor, None]:
        """The gradients of images and weights."""
        x, weight = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        to_x, to_weight = torch.empty_like(x), torch.empty_like(weight)
        ctx.native.depthwise_backward(
            ctypes.byref(_arguments(x, weight, ctx.stride)),
            *map(address, (x, weight, gradient, to_x, to_weight)),
        )
        return None, to_x, to_weight, None


class _Arguments(ctypes.Structure):
    """As `Depthwise` in native/depthwise.cpp."""

    _fields_ = tuple(
        (name, ctypes.c_int64)
        for name in ("images", "height", "width", "channels", "stride", "group")
    )


def _arguments(x: Tensor, weight: Tensor, stride: int) -> _Arguments:
    images, channels, height, width = x.shape
    return _Arguments(images, height, width, channels, stride, weight.shape[1])
