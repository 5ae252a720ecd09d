"""Backbones of a convolutional trunk and a neck: what IResNet and MobileFaceNet share."""

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from facescale.backbones import necks
from facescale.backbones.backbone import IMAGE_SHAPE, IMAGE_SIZES, Backbone, Spec, normalise
from facescale.backbones.families import FAMILIES, Architecture, Family, initialise_
from facescale.backbones.registry import require


class ConvolutionalBackbone(Backbone):
    """A trunk, then a neck in full precision.

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
        super().__init__(**spec)
        for name, layer in (*trunk.items(), *neck.items()):
            self.add_module(name, layer)
        self.trunk_names = tuple(trunk)
        self.neck_names = tuple(neck)
        self.pixel_scale = pixel_scale
        self.shrink = IMAGE_SHAPE[1] // spec["image_size"]

    def forward(self, pixels: Tensor) -> Tensor:
        """RGB pixels 0..255 (b, 3, 112, 112), of any type, to embeddings (b, embedding_dim).

        The trunk follows the surrounding autocast; the neck and the embeddings have the type of the
        weights. Raises ValueError for images of another shape.
        """
        self.check(pixels)
        dtype = next(self.parameters()).dtype
        x = self.normalise(pixels, dtype)
        if self.shrink > 1:
            x = avg_pool2d(x, self.shrink)
        x = self.apply_layers(self.trunk_names, x)
        # the linear layer sums 25,088 products and the loss compares angles: too fine for 8 bits
        with torch.autocast(x.device.type, enabled=False):
            return self.apply_layers(self.neck_names, x.to(dtype))

    def normalise(self, pixels: Tensor, dtype: torch.dtype) -> Tensor:
        """Pixels 0..255 to numbers around 0, by the family's scale."""
        return normalise(pixels, dtype, self.pixel_scale)

    def apply_layers(self, names: Iterable[str], x: Tensor) -> Tensor:
        """Apply the layers of these names in order."""
        for name in names:
            x = self.get_submodule(name)(x)
        return x


def assemble(
    architecture: Architecture,
    trunk: Callable[[float], dict[str, nn.Module]],
    channels: int,
    *,
    embedding_dim: int,
    neck: str,
    family: str,
    dropout: float | None,
    image_size: int,
    generator: torch.Generator | None,
) -> ConvolutionalBackbone:
    """A backbone with initial weights, from a function that makes a trunk of a BatchNorm eps.

    The trunk's output has `channels` channels; the other arguments are those of `build`.

    Raises:
        ValueError: A neck or family is unknown, or a number is out of its range.
    """
    require("neck", neck, necks.NAMES)
    require("family", family, FAMILIES)
    if embedding_dim < 1:
        raise ValueError(f"embedding_dim must be at least 1, got {embedding_dim}")
    if image_size not in IMAGE_SIZES:
        raise ValueError(f"image_size must be one of {IMAGE_SIZES}, got {image_size}")
    numerics = FAMILIES[family]
    rules = numerics.rules(architecture)
    dropout = _dropout(dropout, neck, numerics)
    # every trunk halves an image four times, rounding up
    features = channels, -(-image_size // 16)
    backbone = ConvolutionalBackbone(
        trunk=trunk(rules.eps),
        neck=necks.neck(neck, features, embedding_dim, numerics, dropout),
        pixel_scale=numerics.pixel_scale,
        spec={
            "embedding_dim": embedding_dim,
            "neck": neck,
            "family": family,
            "dropout": dropout,
            "image_size": image_size,
        },
    )
    initialise_(backbone, rules, generator)
    return backbone


def _dropout(asked: float | None, neck: str, family: Family) -> float | None:
    """The dropout of neck E; None for the necks that have none."""
    if neck == "E":
        dropout = family.dropout if asked is None else asked
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"dropout must be in [0, 1), got {dropout}")
        return dropout
    if asked is not None:
        raise ValueError(f"neck {neck} has no dropout, got {asked}; choose neck E or leave it out")
    return None
