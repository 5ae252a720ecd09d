"""Walks over the drawn rows of a step, one file a device or language."""
