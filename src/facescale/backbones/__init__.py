"""Backbones: networks from face images, raw RGB pixels 0..255 (b, 3, 112, 112), to embeddings.

| name | network | embedding | neck | family |
|---|---|---|---|---|
| r18 r34 r50 r100 r200 | IResNet | 512 | E | mxnet |
| r18_half | IResNet-18 with half the channels, for laptops | 256 | E | mxnet |
| y1 y2 | MobileFaceNet of InsightFace | 128, 256 | GDC | mxnet |
| mbf mbf_large | MobileFaceNet of arcface_torch, wider | 512 | GDC | arcface_torch |

These are the defaults of `build`; `necks` and `families` say what the two choices mean.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from facescale.backbones import iresnet, mobilefacenet, necks
from facescale.backbones.backbone import IMAGE_SIZES, Backbone, Spec
from facescale.backbones.families import FAMILIES, Architecture, Family, initialise_

__all__ = ["NAMES", "Backbone", "Family", "Spec", "build"]


@dataclass(frozen=True)
class _Network:
    """A trunk, still without its BatchNorm eps, and what goes with it by default."""

    architecture: Architecture
    trunk: Callable[[float], dict[str, nn.Module]]
    channels: int
    embedding_dim: int
    neck: str
    family: str


def _iresnet(*units: int, width: int = 64) -> _Network:
    trunk = partial(iresnet.trunk, units, width)
    return _Network("iresnet", trunk, 8 * width, 8 * width, "E", "mxnet")


def _mobilefacenet(
    blocks: tuple[int, ...], width: int, first_expansion: int, embedding_dim: int, family: str
) -> _Network:
    trunk = partial(mobilefacenet.trunk, blocks, width, first_expansion)
    return _Network("mobilefacenet", trunk, 512, embedding_dim, "GDC", family)


_NETWORKS = {
    "r18": _iresnet(2, 2, 2, 2),
    "r18_half": _iresnet(2, 2, 2, 2, width=32),
    "r34": _iresnet(3, 4, 6, 3),
    "r50": _iresnet(3, 4, 14, 3),
    "r100": _iresnet(3, 13, 30, 3),
    "r200": _iresnet(6, 26, 60, 6),
    "y1": _mobilefacenet((1, 4, 6, 2), 64, 64, 128, "mxnet"),
    "y2": _mobilefacenet((2, 8, 16, 4), 64, 64, 256, "mxnet"),
    "mbf": _mobilefacenet((1, 4, 6, 2), 128, 128, 512, "arcface_torch"),
    "mbf_large": _mobilefacenet((2, 8, 12, 4), 256, 128, 512, "arcface_torch"),
}

NAMES = tuple(_NETWORKS)


def build(
    name: str,
    embedding_dim: int | None = None,
    neck: str | None = None,
    family: str | None = None,
    dropout: float | None = None,
    image_size: int = 112,
    *,
    generator: torch.Generator | None = None,
) -> Backbone:
    """A backbone with fresh weights; None takes the default of the table above.

    Args:
        name: One of `NAMES`.
        embedding_dim: Length of an embedding.
        neck: `E`, `FC` or `GDC`.
        family: `mxnet` or `arcface_torch`: BatchNorm eps, pixel scale, start of the weights.
        dropout: Probability to drop an activation in neck E, in [0, 1); None takes the family's.
        image_size: Images are averaged down to this size first: 112 leaves them, 56 costs a
            quarter, 28 a sixteenth.
        generator: Source of the weights; None takes torch's default one.

    Raises:
        ValueError: A name, neck or family is unknown, or a number is out of its range.
    """
    spec = _resolve(name, embedding_dim, neck, family, dropout, image_size)
    network, numerics = _NETWORKS[name], FAMILIES[spec["family"]]
    rules = numerics.rules(network.architecture)
    # every trunk halves an image four times, rounding up
    features = network.channels, -(-image_size // 16)
    backbone = Backbone(
        trunk=network.trunk(rules.eps),
        neck=necks.neck(spec["neck"], features, spec["embedding_dim"], numerics, spec["dropout"]),
        pixel_scale=numerics.pixel_scale,
        spec=spec,
    )
    initialise_(backbone, rules, generator)
    return backbone


def _resolve(
    name: str,
    embedding_dim: int | None,
    neck: str | None,
    family: str | None,
    dropout: float | None,
    image_size: int,
) -> Spec:
    """Every choice made: what was given, checked, and the network's own for the rest."""
    _require("backbone", name, NAMES)
    network = _NETWORKS[name]
    embedding_dim = network.embedding_dim if embedding_dim is None else embedding_dim
    if embedding_dim < 1:
        raise ValueError(f"embedding_dim must be at least 1, got {embedding_dim}")
    neck = network.neck if neck is None else neck
    _require("neck", neck, necks.NAMES)
    family = network.family if family is None else family
    _require("family", family, FAMILIES)
    if image_size not in IMAGE_SIZES:
        raise ValueError(f"image_size must be one of {IMAGE_SIZES}, got {image_size}")
    return Spec(
        name=name,
        embedding_dim=embedding_dim,
        neck=neck,
        family=family,
        dropout=_dropout(dropout, neck, FAMILIES[family]),
        image_size=image_size,
    )


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


def _require(kind: str, value: str, allowed: Collection[str]) -> None:
    if value not in allowed:
        raise ValueError(f"unknown {kind} {value!r}; choose one of {', '.join(allowed)}")
