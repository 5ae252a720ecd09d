"""The order of samples: an endless stream of epochs, any place of which is computed by itself."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from facescale.random import hash64

_ROUNDS = 4  # of both halves; two are enough for large sets (Luby and Rackoff, 1988)


@dataclass(frozen=True)
class EpochOrder:
    """Position p of the stream is place p % num_images in the permutation of epoch p // num_images.

    A permutation is a function of (seed, epoch) alone and is never stored: neither memory nor the
    order depends on how many ranks read it, and a run goes on from a position.

    Attributes:
        num_images: How many there are, at least 1.
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
        index = self._permute(place, epoch)
        # Cycle walking: the grid is a little larger than the set; go on until back inside.
        while (outside := index >= self.num_images).any():
            index[outside] = self._permute(index[outside], epoch[outside])
        return index

    def _permute(self, place: NDArray[np.int64], epoch: NDArray[np.int64]) -> NDArray[np.int64]:
        """Permute a grid of at least num_images cells by a Feistel network that adds."""
        num_rows = math.isqrt(self.num_images - 1) + 1
        num_columns = -(-self.num_images // num_rows)
        row, column = np.divmod(place.astype(np.uint64), np.uint64(num_columns))
        for step in range(_ROUNDS):
            row = (row + hash64(self.seed, epoch, 2 * step, column) % num_rows) % num_rows
            column = (
                column + hash64(self.seed, epoch, 2 * step + 1, row) % num_columns
            ) % num_columns
        return (row * np.uint64(num_columns) + column).astype(np.int64)
