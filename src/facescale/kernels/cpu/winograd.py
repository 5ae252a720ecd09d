"""3x3 convolutions by Winograd's F(2x2, 3x3): 16 products for what plainly are 36, on CPUs."""

import ctypes
import math
import threading
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from facescale.kernels.cpu.dispatch import address

PORTION = 32 << 20  # bytes of transformed images at once: more would leave the shared cache


class Winograd(torch.autograd.Function):
    """A convolution of stride 1 and padding 1; native transforms around torch's matrix products.

    The sums are those of other terms than in a plain convolution; what rounding costs is as much.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, native: Any, x: Tensor, weight: Tensor) -> Tensor:
        """Images (b, c, h, w), weights (channels, c, 3, 3), channels last; (b, channels, h, w)."""
        output = torch.empty((len(x), len(weight), *x.shape[2:]), memory_format=torch.channels_last)
        for inputs, outputs in _portions(x, output):
            factors, matrices, products = _scratch(
                _of_weight(weight), _of_images(inputs), _of_images(outputs)
            )
            native.winograd_weight(*_sizes(weight), address(weight), address(factors))
            native.winograd_input(_images(inputs), address(inputs), address(matrices))
            torch.bmm(matrices, factors.mT, out=products)
            native.winograd_output(_images(outputs), address(products), address(outputs))
        ctx.save_for_backward(x, weight)
        ctx.native = native  # type: ignore[attr-defined]
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor, Tensor]:
        """The gradients of images and weights."""
        (x, weight), native = ctx.saved_tensors, ctx.native
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        to_x, to_weight = torch.empty_like(x), torch.zeros_like(weight)
        for inputs, to_inputs, outputs in _portions(x, to_x, gradient):
            factors, to_factors, matrices, products = _scratch(
                *[_of_weight(weight)] * 2, _of_images(inputs), _of_images(outputs)
            )
            native.winograd_weight(*_sizes(weight), address(weight), address(factors))
            native.winograd_output_adjoint(_images(outputs), address(outputs), address(products))
            torch.bmm(products, factors, out=matrices)
            native.winograd_input_adjoint(_images(to_inputs), address(matrices), address(to_inputs))
            native.winograd_input(_images(inputs), address(inputs), address(matrices))
            torch.bmm(products.mT, matrices, out=to_factors)
            share = torch.empty_like(weight)
            native.winograd_weight_adjoint(*_sizes(weight), address(to_factors), address(share))
            to_weight += share
        return None, to_x, to_weight


class _Images(ctypes.Structure):
    """As `Images` in native/winograd.cpp."""

    _fields_ = tuple((name, ctypes.c_int64) for name in ("images", "height", "width", "channels"))


def _images(x: Tensor) -> Any:
    images, channels, height, width = x.shape
    return ctypes.byref(_Images(images, height, width, channels))


def _sizes(weight: Tensor) -> Iterator[ctypes.c_int64]:
    return map(ctypes.c_int64, weight.shape[:2])


def _tiles(x: Tensor) -> int:
    """Of 2x2 outputs, in an image."""
    return -(-x.shape[2] // 2) * -(-x.shape[3] // 2)


def _portions(*images: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Views of a few of the images each, of all the tensors (b, c, h, w)."""
    widest = max(x.shape[1] for x in images)
    size = max(1, PORTION // (4 * 16 * widest * _tiles(images[0])))
    return zip(*(x.split(size) for x in images), strict=True)


def _of_images(x: Tensor) -> tuple[int, ...]:
    """Shape of (b, c, h, w) transformed."""
    return 16, len(x) * _tiles(x), x.shape[1]


def _of_weight(weight: Tensor) -> tuple[int, ...]:
    """Shape of (channels, c, 3, 3) transformed."""
    return 16, *weight.shape[:2]


_kept = threading.local()


def _scratch(*shapes: tuple[int, ...]) -> list[Tensor]:
    """Tensors of these shapes and of any content, over one block that the thread's next call gets.

    What comes and goes in every layer, four times as large as what stays, would leave the heap
    full of holes.
    """
    sizes = [-(-math.prod(shape) // 16) * 16 for shape in shapes]  # so each begins a cache line
    if not hasattr(_kept, "block") or _kept.block.numel() < sum(sizes):
        with torch.inference_mode(False):  # or it could not be written to in training
            _kept.block = torch.empty(sum(sizes))
    pieces = _kept.block[: sum(sizes)].split(sizes)
    return [p[: math.prod(s)].view(s) for p, s in zip(pieces, shapes, strict=True)]
