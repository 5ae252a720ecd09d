"""The head, a library of its own: margin softmax over sharded, sampled, self-learning centres."""

from facescale.head.margin_head import MarginHead
from facescale.head.margins import Margin, arcface, combined, cosface

__all__ = ["Margin", "MarginHead", "arcface", "combined", "cosface"]
