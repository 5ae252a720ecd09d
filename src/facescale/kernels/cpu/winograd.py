"""3x3 convolutions by Winograd's F(2x2, 3x3) on CPUs: 16 multiplications in place of 36.

Images are (b, c, h, w), weights (c', c, 3, 3), both float32 and channels last. Native transforms
take them to 16 matrices each and back; between them are torch's matrix products. The matrices are
four times as large as the images. They are in a scratch tensor that the caller passes, so that a
count of tensors (`plan/ledger.py`) includes them.
"""

import ctypes
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from facescale.kernels.cpu.operators import address, channels_last, define_native, images, native
from facescale.kernels.cpu.workspace import workspace

PORTION = 32 << 20  # bytes of transformed images at once: more would leave the shared cache


class Winograd(torch.autograd.Function):
    """A convolution of stride 1 and padding 1: images and weights to (b, c', h, w).

    The rounding error is as large as that of a direct convolution.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        """The convolution."""
        ctx.save_for_backward(x, weight)
        ctx.workspace = workspace()
        scratch = ctx.workspace.take(_scratch_size(x, weight, num_factors=1))
        output: Tensor = winograd(x, weight, scratch)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """The gradients of images and weights."""
        x, weight = ctx.saved_tensors
        scratch = ctx.workspace.take(_scratch_size(x, weight, num_factors=2))
        to_x, to_weight = winograd_backward(channels_last(gradient), x, weight, scratch)
        return to_x, to_weight


def _output(x: Tensor, weight: Tensor, scratch: Tensor) -> Tensor:
    return images((len(x), len(weight), *x.shape[2:]))


def _fill(x: Tensor, weight: Tensor, scratch: Tensor, output: Tensor) -> None:
    factors, *rooms = _divide(scratch, x, weight, num_factors=1)
    _transform("weight", weight, factors)
    for inputs, outputs in _portions(weight, x, output):
        matrices, products = map(_matrices, rooms, (inputs, outputs))
        _transform("input", inputs, matrices)
        torch.bmm(matrices, factors.mT, out=products)
        _transform("output", products, outputs)


winograd = define_native(
    "winograd(Tensor x, Tensor weight, Tensor(a!) scratch) -> Tensor", _output, _fill
)


def _gradients(
    gradient: Tensor, x: Tensor, weight: Tensor, scratch: Tensor
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(weight)


def _fill_backward(
    gradient: Tensor,
    x: Tensor,
    weight: Tensor,
    scratch: Tensor,
    to_x: Tensor,
    to_weight: Tensor,
) -> None:
    factors, to_factors, *rooms = _divide(scratch, x, weight, num_factors=2)
    _transform("weight", weight, factors)
    to_factors.zero_()
    for inputs, to_inputs, outputs in _portions(weight, x, to_x, gradient):
        matrices, products = map(_matrices, rooms, (inputs, outputs))
        # an adjoint takes a gradient the other way
        _transform("output_adjoint", outputs, products)
        torch.bmm(products, factors, out=matrices)
        _transform("input_adjoint", matrices, to_inputs)
        _transform("input", inputs, matrices)
        torch.baddbmm(to_factors, products.mT, matrices, out=to_factors)
    _transform("weight_adjoint", to_factors, to_weight)


winograd_backward = define_native(
    "winograd_backward(Tensor gradient, Tensor x, Tensor weight, Tensor(a!) scratch) "
    "-> (Tensor, Tensor)",
    _gradients,
    _fill_backward,
)


class _Images(ctypes.Structure):
    """As `Images` in winograd.cpp."""

    _fields_ = tuple((name, ctypes.c_int64) for name in ("images", "height", "width", "channels"))


def _transform(name: str, source: Tensor, target: Tensor) -> None:
    """Write a transform of images or weights into matrices, or the other way."""
    plain = source if source.ndim == 4 else target
    outer, channels, height, width = plain.shape
    sizes: tuple[Any, ...] = (ctypes.byref(_Images(outer, height, width, channels)),)
    if name.startswith("weight"):
        sizes = ctypes.c_int64(outer), ctypes.c_int64(channels)
    getattr(native("winograd"), f"winograd_{name}")(*sizes, address(source), address(target))


def _tiles(x: Tensor) -> int:
    """The number of 2x2 tiles of an image."""
    height, width = x.shape[2:]
    return -(-height // 2) * -(-width // 2)


def _portion(x: Tensor, weight: Tensor) -> int:
    """How many images are transformed at once."""
    widest = max(weight.shape[:2])
    return max(1, PORTION // (4 * 16 * widest * _tiles(x)))


def _portions(weight: Tensor, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Views of a few of the images each, of all the tensors (b, c, h, w)."""
    size = _portion(tensors[0], weight)
    return zip(*(x.split(size) for x in tensors), strict=True)


def _scratch_sizes(x: Tensor, weight: Tensor, num_factors: int) -> list[int]:
    """Elements of the matrices of the weights, `num_factors` times, and of a portion in and out."""
    tiles = min(len(x), _portion(x, weight)) * _tiles(x)
    outputs, inputs = weight.shape[:2]
    sizes = [*[outputs * inputs] * num_factors, tiles * inputs, tiles * outputs]
    return [16 * size for size in sizes]


def _scratch_size(x: Tensor, weight: Tensor, num_factors: int) -> int:
    """Elements of all scratch of a call."""
    return sum(_scratch_sizes(x, weight, num_factors))


def _divide(scratch: Tensor, x: Tensor, weight: Tensor, num_factors: int) -> list[Tensor]:
    """The parts of `scratch`: matrices of the weights, and the room for images in and out."""
    parts = scratch.split(_scratch_sizes(x, weight, num_factors))
    factors = [part.view(16, *weight.shape[:2]) for part in parts[:num_factors]]
    return [*factors, *parts[num_factors:]]


def _matrices(room: Tensor, x: Tensor) -> Tensor:
    """The start of `room` as the matrices of the images `x`."""
    tiles, channels = len(x) * _tiles(x), x.shape[1]
    return room[: 16 * tiles * channels].view(16, tiles, channels)
