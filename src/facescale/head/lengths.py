"""The length of embeddings, taken off them."""

import torch
from torch import Tensor

SMALLEST_NORM = 1e-12  # of an embedding, as torch.nn.functional.normalize


def normalise(embeddings: Tensor) -> tuple[Tensor, Tensor]:
    """Embeddings (b, dim) of length 1, and the length that they had, (b,)."""
    # Near either end of the type's range, squares would be 0 or infinite. So divide by a power of 2
    # that is about as large as the largest number; elsewhere that changes no bit of the result.
    largest = embeddings.detach().abs().amax(dim=1, keepdim=True)
    size = (largest / (2 * largest.frexp().mantissa)).where(largest != 0, 1.0)
    within = embeddings / size
    norm = torch.linalg.vector_norm(within, dim=1, keepdim=True)
    return within / norm.clamp_min(SMALLEST_NORM), (norm * size)[:, 0]
