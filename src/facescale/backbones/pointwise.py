"""1x1 convolutions, natively on CPUs: with the passes of the norms on both sides in them."""

import ctypes

import torch
from torch import Tensor, nn

from facescale.backbones.norm import Norm
from facescale.native.kernels import address, kernels


class Pointwise:
    """One convolution at stride 1; images (b, c, h, w) channels last, weights (c', c, 1, 1)."""

    @staticmethod
    def serves(conv: nn.Conv2d) -> bool:
        """Whether this is such a convolution."""
        is_plain = conv.groups == 1 and conv.bias is None and conv.padding == (0, 0)
        return is_plain and conv.kernel_size == (1, 1) and conv.stride == (1, 1)

    def __init__(self, x: Tensor, weight: Tensor) -> None:
        # Asked before the forward pass; the backward one may come to run under autocast.
        with torch.autocast("cpu", enabled=False):
            self._native = kernels("pointwise", x, weight)
        self._given = address(x), address(weight)
        outputs, inputs = weight.shape[:2]
        self._arguments = _Arguments(x.numel() // inputs, inputs, outputs)

    def forward(self, before: Norm | None, behind: Norm, z: Tensor) -> None:
        """Put out `z` (b, c', h, w) and the statistics of the norm behind it."""
        self._native.pointwise_forward(
            ctypes.byref(self._arguments),
            before and ctypes.byref(before),
            *self._given,
            ctypes.byref(behind),
            address(z),
        )

    def backward(
        self,
        before: Norm | None,
        behind: Norm,
        z: Tensor,
        gradient: Tensor,
        shortcut: Tensor | None,
        to_x: Tensor,
        to_weight: Tensor,
    ) -> None:
        """Put out the gradients of both, and the totals of the norm before.

        `gradient` is that of what the norm behind has made; `shortcut` is added to that of `x`.
        """
        self._native.pointwise_backward(
            ctypes.byref(self._arguments),
            before and ctypes.byref(before),
            *self._given,
            ctypes.byref(behind),
            *map(address, (z, gradient, shortcut, to_x, to_weight)),
        )


class _Arguments(ctypes.Structure):
    """As `Pointwise` in native/pointwise.cpp."""

    _fields_ = tuple((name, ctypes.c_int64) for name in ("rows", "inputs", "outputs"))
