"""Data: sets of face images on disk or made up, their order, their batches, pairs to verify."""
