"""Margin softmax over sharded, sampled class centres that learn in the backward pass.

Usable without the rest of the package but for `distributed`, `kernels`, `random` and `allocator`.
"""

from facescale.head.draw import Sample
from facescale.head.margin_head import MarginHead
from facescale.head.margins import (
    AdaFace,
    CurricularFace,
    MagFace,
    Margin,
    TargetMargin,
    arcface,
    combined,
    cosface,
    make_margin,
    register_margin,
)
from facescale.head.walks import register_walk

__all__ = [
    "AdaFace",
    "CurricularFace",
    "MagFace",
    "Margin",
    "MarginHead",
    "Sample",
    "TargetMargin",
    "arcface",
    "combined",
    "cosface",
    "make_margin",
    "register_margin",
    "register_walk",
]
