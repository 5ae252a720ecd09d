"""How good embeddings are: verification of pairs, and pictures of a run."""
