"""Train face recognition over millions of identities, and measure how fast and large it goes."""

from facescale.head import Margin, MarginHead, arcface, combined, cosface

__version__ = "0.1.0"

__all__ = ["Margin", "MarginHead", "arcface", "combined", "cosface"]
