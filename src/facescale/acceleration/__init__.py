"""Layers of a network swapped for faster ones with the same weight names."""

from facescale.acceleration.accelerate import accelerate_

__all__ = ["accelerate_"]
