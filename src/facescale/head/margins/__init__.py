"""What is asked of a sample's own class, one file a margin.

A margin is a callable like `TargetMargin`. `register_margin` gives it a name, from this package or
from outside of it.
"""

from facescale.head.margins.adaface import AdaFace
from facescale.head.margins.combined import Margin, arcface, combined, cosface
from facescale.head.margins.curricular import CurricularFace
from facescale.head.margins.magface import MagFace
from facescale.head.margins.target import (
    Others,
    TargetMargin,
    make_margin,
    margin_names,
    margin_values,
    observe_,
    observe_cosines_,
    others_of,
    penalty,
    register_margin,
    reweights,
    scaled,
    value_and_slopes,
)

__all__ = [
    "AdaFace",
    "CurricularFace",
    "MagFace",
    "Margin",
    "Others",
    "TargetMargin",
    "arcface",
    "combined",
    "cosface",
    "make_margin",
    "margin_names",
    "margin_values",
    "observe_",
    "observe_cosines_",
    "others_of",
    "penalty",
    "register_margin",
    "reweights",
    "scaled",
    "value_and_slopes",
]
