"""3x3 convolutions by Winograd's F(2x2, 3x3): 16 products for what plainly are 36, on CPUs.

The transforms are operators; around them are torch's matrix products. The scratch tensors, four
times as large as the images, are plain tensors of one call, so they are counted where tensors are.
Images are (b, c, h, w), transformed ones (16, tiles, c); weights are (c', c, 3, 3), transformed
ones (16, c', c); all float32, images and weights channels last.
"""

import ctypes
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from facescale.kernels.cpu.operators import address, channels_last, define_native, images, native

PORTION = 32 << 20  # bytes of transformed images at once: more would leave the shared cache


class _Images(ctypes.Structure):
    """As `Images` in winograd.cpp."""

    _fields_ = tuple((name, ctypes.c_int64) for name in ("images", "height", "width", "channels"))


def _of_images(x: Tensor) -> tuple[Any, ...]:
    batch, channels, height, width = x.shape
    return (ctypes.byref(_Images(batch, height, width, channels)),)


def _of_weights(weight: Tensor) -> tuple[Any, ...]:
    return tuple(map(ctypes.c_int64, weight.shape[:2]))


def _transform(name: str, sizes: Callable[[Tensor], tuple[Any, ...]]) -> Any:
    """The operator that writes the transform `name` of its first tensor into its second."""

    def fill(source: Tensor, target: Tensor) -> None:
        plain = source if source.ndim == 4 else target
        places = address(source), address(target)
        getattr(native("winograd"), f"winograd_{name}")(*sizes(plain), *places)

    schema = f"winograd_{name}(Tensor source, Tensor(a!) target) -> ()"
    return define_native(schema, lambda source, target: None, fill)


# The adjoint of a transform takes its gradients the other way.
_input = _transform("input", _of_images)
_input_adjoint = _transform("input_adjoint", _of_images)
_output = _transform("output", _of_images)
_output_adjoint = _transform("output_adjoint", _of_images)
_weight = _transform("weight", _of_weights)
_weight_adjoint = _transform("weight_adjoint", _of_weights)


class Winograd(torch.autograd.Function):
    """A convolution of stride 1 and padding 1: images and weights to (b, c', h, w).

    The sums are those of other terms than in a plain convolution; what rounding costs is as much.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        """The convolution, a few images at a time."""
        output = images((len(x), len(weight), *x.shape[2:]))
        factors = _factors(weight)
        rooms = _rooms(x, output)
        for inputs, outputs in _portions(x, output):
            matrices, products = _views(rooms, inputs, outputs)
            _input(inputs, matrices)
            torch.bmm(matrices, factors.mT, out=products)
            _output(products, outputs)
        ctx.save_for_backward(x, weight)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """The gradients of images and weights."""
        x, weight = ctx.saved_tensors
        gradient = channels_last(gradient)
        to_x, to_weight = torch.empty_like(x), torch.empty_like(weight)
        factors = _factors(weight)
        to_factors = torch.zeros_like(factors)
        rooms = _rooms(x, gradient)
        # a backward pass may run inside an autocast that the forward pass did not see
        with torch.autocast("cpu", enabled=False):
            for inputs, to_inputs, outputs in _portions(x, to_x, gradient):
                matrices, products = _views(rooms, inputs, outputs)
                _output_adjoint(outputs, products)
                torch.bmm(products, factors, out=matrices)
                _input_adjoint(matrices, to_inputs)
                _input(inputs, matrices)
                to_factors.baddbmm_(products.mT, matrices)
        _weight_adjoint(to_factors, to_weight)
        return to_x, to_weight


def _factors(weight: Tensor) -> Tensor:
    factors = torch.empty(16, *weight.shape[:2])
    _weight(weight, factors)
    return factors


def _portions(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Views of a few of the images each, of all the tensors (b, c, h, w)."""
    return zip(*(x.split(_portion(*tensors)) for x in tensors), strict=True)


def _portion(*tensors: Tensor) -> int:
    """How many images are transformed at once."""
    widest = max(x.shape[1] for x in tensors)
    return max(1, PORTION // (4 * 16 * widest * _tiles(tensors[0])))


def _tiles(x: Tensor) -> int:
    """Of 2x2 outputs, in an image."""
    height, width = x.shape[2:]
    return -(-height // 2) * -(-width // 2)


def _rooms(*tensors: Tensor) -> list[Tensor]:
    """For each of the tensors one that holds a transformed portion of it."""
    size = min(len(tensors[0]), _portion(*tensors))
    return [torch.empty(16 * size * _tiles(x) * x.shape[1]) for x in tensors]


def _views(rooms: list[Tensor], *portions: Tensor) -> list[Tensor]:
    """The rooms as transformed images of the portions."""
    shapes = [(16, len(x) * _tiles(x), x.shape[1]) for x in portions]
    return [
        room[: 16 * tiles * channels].view(16, tiles, channels)
        for room, (_, tiles, channels) in zip(rooms, shapes, strict=True)
    ]
