"""Layers of a network swapped for faster ones with the same weight names."""
