"""Evaluation of embeddings: verification of pairs, and plots of a run."""
