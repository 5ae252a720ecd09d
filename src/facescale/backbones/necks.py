"""Necks: from the trunk's features (b, channels, size, size) to embeddings (b, embedding_dim).

| neck | layers | where |
|---|---|---|
| E | BatchNorm, dropout, linear, BatchNorm | R100 on face_emore |
| FC | E without dropout | R100 on glint360k |
| GDC | depthwise 7x7 convolution + BatchNorm, linear, BatchNorm | MobileFaceNet |

The last BatchNorm gives every coordinate of the embedding unit variance. Its gamma is fixed at 1,
which is what MXNet calls `fix_gamma`, except in arcface_torch's GDC. E is the choice of ArcFace
(Deng et al., CVPR 2019, section 3.1), GDC that of MobileFaceNet (Chen et al., CCBR 2018).
"""

from torch import nn

from facescale.backbones.families import Family
from facescale.backbones.layers import Layers, conv_bn

NAMES = ("E", "FC", "GDC")


def neck(
    name: str,
    features: tuple[int, int],
    embedding_dim: int,
    family: Family,
    dropout: float | None,
) -> dict[str, nn.Module]:
    """Layers of the neck `name`, one of `NAMES`; `dropout` is None where there is none.

    `features` are the channels and the size of the map that it takes: (512, 7) but for small trunks
    and small images.
    """
    if name == "GDC":
        return _gdc(features, embedding_dim, family)
    return _fully_connected(features, embedding_dim, family.neck_eps, dropout or 0.0)


def _fully_connected(
    features: tuple[int, int], embedding_dim: int, eps: float, dropout: float
) -> dict[str, nn.Module]:
    channels, size = features
    return {
        "bn2": nn.BatchNorm2d(channels, eps=eps),
        "dropout": nn.Dropout(dropout),
        "flatten": nn.Flatten(),
        "fc": nn.Linear(channels * size * size, embedding_dim),
        "features": _last_norm(embedding_dim, eps, trains_gamma=False),
    }


def _gdc(features: tuple[int, int], embedding_dim: int, family: Family) -> dict[str, nn.Module]:
    """Global depthwise convolution: each channel learns its own weights for the 7x7 places."""
    channels, size = features
    return {
        "features": Layers(
            conv_bn(channels, channels, size, groups=channels, padding=0, eps=family.depthwise_eps),
            nn.Flatten(),
            nn.Linear(channels, embedding_dim, bias=family.gdc_bias),
            _last_norm(embedding_dim, family.neck_eps, family.gdc_trains_gamma),
        )
    }


def _last_norm(embedding_dim: int, eps: float, trains_gamma: bool) -> nn.BatchNorm1d:
    norm = nn.BatchNorm1d(embedding_dim, eps=eps)
    norm.weight.requires_grad_(trains_gamma)
    return norm
