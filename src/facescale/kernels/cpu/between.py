"""Native convolutions that lie between two norms, whose passes they take along."""

import ctypes

import torch
from torch import Tensor

from facescale.kernels.cpu.dispatch import address, kernels
from facescale.kernels.cpu.norm import Norm


class Between:
    """One convolution of an image `x` (b, c, h, w) by the functions of native/`name`.cpp."""

    name: str

    def __init__(self, x: Tensor, weight: Tensor, arguments: ctypes.Structure) -> None:
        # Asked before the forward pass; the backward one may come to run under autocast.
        with torch.autocast("cpu", enabled=False):
            self._native = kernels(self.name, x, weight)
        self._given = address(x), address(weight)
        self._arguments = arguments

    def forward(self, before: Norm | None, behind: Norm | None, z: Tensor) -> None:
        """Put out `z` (b, c', h', w') and the statistics of the norm behind it."""
        self._call("forward", before, behind, z)

    def backward(
        self,
        before: Norm | None,
        behind: Norm | None,
        z: Tensor | None,
        gradient: Tensor,
        shortcut: Tensor | None,
        to_x: Tensor,
        to_weight: Tensor,
    ) -> None:
        """Put out the gradients of both, and the totals of the norm before.

        `gradient` is that of what the norm behind has made; `shortcut` is added to that of `x`.
        """
        self._call("backward", before, behind, z, gradient, shortcut, to_x, to_weight)

    def _call(
        self, way: str, before: Norm | None, behind: Norm | None, *tensors: Tensor | None
    ) -> None:
        getattr(self._native, f"{self.name}_{way}")(
            ctypes.byref(self._arguments),
            before and ctypes.byref(before),
            *self._given,
            behind and ctypes.byref(behind),
            *map(address, tensors),
        )
