"""Checkpoints of a run: tensors on any number of ranks, written whole, read safely."""
