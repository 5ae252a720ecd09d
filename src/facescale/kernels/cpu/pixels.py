"""Operators on raw pixels: to numbers around 0, and mirrored; one pass each."""

import ctypes

import torch
from torch import Tensor

from facescale.kernels.cpu.build import missing
from facescale.kernels.cpu.operators import address, define_native, native, takes


def serves(images: Tensor) -> bool:
    """Whether the operators exist and take `images`."""
    return takes(images, dtype=torch.uint8) and missing() is None


def _numbers(pixels: Tensor, scale: float) -> Tensor:
    return torch.empty_like(pixels, dtype=torch.float32)


def _normalise(pixels: Tensor, scale: float, numbers: Tensor) -> None:
    count = ctypes.c_int64(pixels.numel())
    native("pixels").pixels_normalise(
        address(pixels), address(numbers), count, ctypes.c_float(scale)
    )


normalise = define_native(
    "normalise_pixels(Tensor pixels, float scale) -> Tensor", _numbers, _normalise
)
"""uint8 pixels of any shape, dense, to float32 (pixels - 127.5) / scale."""


def _mirrored(images: Tensor, chosen: Tensor) -> Tensor:
    return torch.empty_like(images)


def _mirror(images: Tensor, chosen: Tensor, mirrored: Tensor) -> None:
    sizes = map(ctypes.c_int64, (len(images), *images.shape[2:]))
    native("pixels").pixels_mirror(*map(address, (images, mirrored, chosen)), *sizes)


mirror = define_native("mirror_pixels(Tensor images, Tensor chosen) -> Tensor", _mirrored, _mirror)
"""uint8 images (b, 3, h, w), channels last; those that are `chosen`, (b,) of bool, mirrored."""
