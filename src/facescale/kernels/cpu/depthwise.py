"""3x3 convolutions in groups of one or two channels, natively on CPUs.

For groups of two torch has nothing but a loop over matrices of 2 x 2.
"""

import ctypes
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

from facescale.kernels.cpu.between import Between


class Grouped(Between):
    """One convolution of padding 1; images (b, c, h, w), weights (c, 1 or 2, 3, 3), channels last.

    The gradients of both are one pass. Norms may be absent on either side.
    """

    name = "depthwise"

    @staticmethod
    def serves(conv: nn.Conv2d) -> bool:
        """Whether this is such a convolution."""
        is_square = conv.in_channels == conv.out_channels and conv.groups > 1
        return (
            conv.kernel_size == (3, 3)
            and conv.padding == (1, 1)
            and conv.dilation == (1, 1)
            and conv.stride in ((1, 1), (2, 2))
            and conv.bias is None
            and is_square
            and conv.in_channels // conv.groups <= 2
        )

    def __init__(self, x: Tensor, weight: Tensor, stride: int) -> None:
        images, channels, height, width = x.shape
        group = weight.shape[1]
        super().__init__(x, weight, _Arguments(images, height, width, channels, stride, group))


class Depthwise(torch.autograd.Function):
    """Such a convolution alone."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, weight: Tensor, stride: int) -> Tensor:
        """Images (b, c, h, w) and weights (c, 1 or 2, 3, 3), channels last, to (b, c, h', w')."""
        images, channels, height, width = x.shape
        output = torch.empty(
            (images, channels, -(-height // stride), -(-width // stride)),
            memory_format=torch.channels_last,
        )
        Grouped(x, weight, stride).forward(None, None, output)
        ctx.save_for_backward(x, weight)
        ctx.stride = stride  # type: ignore[attr-defined]
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        """The gradients of images and weights."""
        x, weight = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        to_x, to_weight = torch.empty_like(x), torch.empty_like(weight)
        Grouped(x, weight, ctx.stride).backward(None, None, None, gradient, None, to_x, to_weight)
        return to_x, to_weight, None


class _Arguments(ctypes.Structure):
    """As `Depthwise` in native/depthwise.cpp."""

    _fields_ = tuple(
        (name, ctypes.c_int64)
        for name in ("images", "height", "width", "channels", "stride", "group")
    )
