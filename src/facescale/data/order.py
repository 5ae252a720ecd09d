"""The order of samples: an endless stream of epochs, any place of which is computed by itself."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from facescale.random import Permutation, key


@dataclass(frozen=True)
class EpochOrder:
    """Position p of the stream is place p % num_images in the permutation of epoch p // num_images.

    A permutation is a function of (seed, epoch) alone and is never stored: neither memory nor the
    order depends on the number of ranks, and a run continues from any position.

    Attributes:
        num_images: At least 1.
        seed: Another seed, another order.
    """

    num_images: int
    seed: int

    def __post_init__(self) -> None:
        if self.num_images < 1:
            raise ValueError(f"num_images must be at least 1, got {self.num_images}")

    def indices(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """The images at `positions` >= 0 of the stream; (k,) -> (k,)."""
        epoch, place = np.divmod(positions, self.num_images)
        order = Permutation(self.num_images, key(self.seed).child(torch.from_numpy(epoch)))
        indices: NDArray[np.int64] = order(torch.from_numpy(place)).numpy()
        return indices
