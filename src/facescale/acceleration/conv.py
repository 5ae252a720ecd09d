"""Convolutions that in training on CPUs are native where that is faster than oneDNN."""

from typing import TypeGuard

import torch
from torch import Tensor, nn

from facescale.kernels.cpu.between import grouped_conv
from facescale.kernels.cpu.operators import takes
from facescale.kernels.cpu.winograd import Winograd

WIDE = 128  # channels from which on Winograd saves more in products than its passes cost


class Conv2d(nn.Conv2d):
    """`torch.nn.Conv2d`: the same values, weights and gradients but for rounding.

    In training these 3x3 convolutions of padding 1 without bias are native: those in groups of one
    or two channels, and dense ones of stride 1 with at least `WIDE` channels.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(b, in_channels, h, w) to (b, channels, h', w')."""
        if self.training and self._takes(input):
            if is_grouped(self):
                return grouped_conv(input, self.weight, self.stride[0])  # type: ignore[no-any-return]
            # What keeps its scratch memory cannot be traced; a compiler takes torch's.
            if is_wide(self) and not torch.compiler.is_compiling():
                return Winograd.apply(input, self.weight)  # type: ignore[no-any-return,no-untyped-call]
        return super().forward(input)

    def _takes(self, x: Tensor) -> bool:
        """Whether the operators compute on `x` and the weights as they are."""
        if torch.is_autocast_enabled("cpu"):  # which chooses the type of the result
            return False
        fits = x.ndim == 4 and x.shape[1] == self.in_channels and x.numel() > 0
        return fits and takes(x, self.weight)


def is_conv(layer: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Whether this is a plain convolution or ours."""
    return type(layer) in (nn.Conv2d, Conv2d)


def is_pointwise(conv: nn.Conv2d) -> bool:
    """Whether this is a 1x1 convolution of stride 1 over all channels, without bias."""
    return (
        conv.kernel_size == (1, 1)
        and conv.padding == (0, 0)
        and conv.stride == (1, 1)
        and conv.groups == 1
        and conv.bias is None
    )


def is_grouped(conv: nn.Conv2d) -> bool:
    """Whether this is a 3x3 convolution in groups of one or two channels."""
    return (
        _is_3x3(conv)
        and conv.stride in ((1, 1), (2, 2))
        and conv.in_channels == conv.out_channels
        and conv.groups > 1
        and conv.in_channels // conv.groups <= 2
    )


def is_wide(conv: nn.Conv2d) -> bool:
    """Whether this is a 3x3 convolution for which Winograd pays."""
    return (
        _is_3x3(conv)
        and conv.stride == (1, 1)
        and conv.groups == 1
        and min(conv.in_channels, conv.out_channels) >= WIDE
    )


def _is_3x3(conv: nn.Conv2d) -> bool:
    """Of padding 1 by zeros, without bias."""
    return (
        conv.kernel_size == (3, 3)
        and conv.padding == (1, 1)
        and conv.padding_mode == "zeros"
        and conv.dilation == (1, 1)
        and conv.bias is None
    )
