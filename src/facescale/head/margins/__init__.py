"""What is asked of a sample's own class, one file a margin.

A margin is a callable like `TargetMargin`. `register_margin` gives it a name, from this package or
from outside of it.
"""

from facescale.head.margins.adaface import AdaFace
from facescale.head.margins.combined import Margin, arcface, combined, cosface
from facescale.head.margins.magface import MagFace
from facescale.head.margins.target import (
    TargetMargin,
    make_margin,
    margin_names,
    margin_values,
    observe_,
    penalty,
    register_margin,
    scaled,
    value_and_slopes,
)

__all__ = [
    "AdaFace",
    "MagFace",
    "Margin",
    "TargetMargin",
    "arcface",
    "combined",
    "cosface",
    "make_margin",
    "margin_names",
    "margin_values",
    "observe_",
    "penalty",
    "register_margin",
    "scaled",
    "value_and_slopes",
]
