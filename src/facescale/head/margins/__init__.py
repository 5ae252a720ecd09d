"""What is asked of a sample's own class, one file a margin."""

from facescale.head.margins.combined import Margin, arcface, combined, cosface

__all__ = ["Margin", "arcface", "combined", "cosface"]
