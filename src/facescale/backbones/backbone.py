"""What every backbone does: raw pixels in, embeddings out, the last layers in full precision."""

import ctypes
from collections.abc import Mapping
from typing import TypedDict

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from facescale.acceleration.sequence import in_sequence
from facescale.kernels.cpu.dispatch import address, kernels

IMAGE_SHAPE = (3, 112, 112)
IMAGE_SIZES = (112, 56, 28)


class Spec(TypedDict):
    """The arguments of `build` that make this backbone again; plain values, fit for JSON."""

    name: str
    embedding_dim: int
    neck: str
    family: str
    dropout: float | None
    image_size: int


class Backbone(nn.Module):
    """A network from face images to embeddings.

    `trunk` and `neck` are layers by name, applied in order. They are registered under these very
    names, so that weights are called as in arcface_torch, where no level separates the two.
    """

    def __init__(
        self,
        trunk: Mapping[str, nn.Module],
        neck: Mapping[str, nn.Module],
        pixel_scale: float,
        spec: Spec,
    ) -> None:
        super().__init__()
        for name, layer in (*trunk.items(), *neck.items()):
            self.add_module(name, layer)
        self.trunk_names = tuple(trunk)
        self.neck_names = tuple(neck)
        self.pixel_scale = pixel_scale
        self.spec = spec
        self.name = spec["name"]
        self.embedding_dim = spec["embedding_dim"]
        self.shrink = IMAGE_SHAPE[1] // spec["image_size"]

    def forward(self, pixels: Tensor) -> Tensor:
        """RGB pixels 0..255 (b, 3, 112, 112), of any type, to embeddings (b, embedding_dim).

        The trunk follows the surrounding autocast; the neck and the embeddings have the type of the
        weights. Embeddings are not normalised to length 1. Raises ValueError for another shape.
        """
        if pixels.shape[1:] != IMAGE_SHAPE:
            raise ValueError(
                f"{self.name} takes RGB images (b, 3, 112, 112), got {tuple(pixels.shape)}"
            )
        dtype = next(self.parameters()).dtype
        x = normalise(pixels, dtype, self.pixel_scale)
        if self.shrink > 1:
            x = avg_pool2d(x, self.shrink)
        x = in_sequence(map(self.get_submodule, self.trunk_names), x)
        # the linear layer sums 25,088 products and the loss compares angles: too fine for 8 bits
        with torch.autocast(x.device.type, enabled=False):
            return in_sequence(map(self.get_submodule, self.neck_names), x.to(dtype))


def normalise(pixels: Tensor, dtype: torch.dtype, scale: float) -> Tensor:
    """Pixels 0..255 to (pixels - 127.5) / scale in `dtype`, in the same memory layout."""
    native = kernels("pixels", pixels, dtype=torch.uint8)
    if native is not None and dtype == torch.float32:
        numbers = torch.empty_like(pixels, dtype=dtype)
        count = ctypes.c_int64(pixels.numel())
        native.pixels_normalise(address(pixels), address(numbers), count, ctypes.c_float(scale))
        return numbers
    # One new tensor, changed in place: a third faster than one for each operation
    return pixels.to(dtype, copy=True).sub_(127.5).div_(scale)
