"""The order of samples: an endless stream, any position of which is computed by itself."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from facescale.random import Permutation, key

ORDERS = ("shuffled", "balanced")
_CLASSES, _IMAGES = range(2)  # keys of the balanced order


class Order(Protocol):
    """Which image each position of the stream of samples is: a function of nothing else."""

    def indices(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """The images at `positions` >= 0 of the stream; (k,) -> (k,)."""


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


class BalancedOrder:
    """Every identity equally often: each round has one image of each, in a new order.

    In round r an identity with n images shows place r % n of a permutation of its images, which
    changes every n rounds: all its images come equally often. Identities without images are left
    out. A position is a function of (seed, labels): a run continues from any of them, on any number
    of ranks.

    Attributes:
        num_classes: Identities that have images, the length of a round.
        seed: Another seed, another order.
    """

    def __init__(self, labels: NDArray[np.int64], seed: int) -> None:
        """Sort the images by identity.

        Args:
            labels: Of every image, (n,); images with a label below 0 are left out.
            seed: Decides the order.

        Raises:
            ValueError: No label is 0 or more.
        """
        self.seed = seed
        by_label = np.argsort(labels, kind="stable")
        by_label = by_label[np.searchsorted(labels[by_label], 0) :]
        if not len(by_label):
            raise ValueError("no image has a label, so there is nothing to balance")
        _, first, counts = np.unique(labels[by_label], return_index=True, return_counts=True)
        self.num_classes = len(counts)
        self._first, self._counts = first, counts
        is_small = len(labels) < 2**31  # 42 million images take 168 MB instead of 336
        self._by_label = by_label.astype(np.int32) if is_small else by_label

    def indices(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """The images at `positions` >= 0 of the stream; (k,) -> (k,)."""
        round_, place = map(torch.from_numpy, np.divmod(positions, self.num_classes))
        of_round = Permutation(self.num_classes, key(self.seed, _CLASSES).child(round_))
        chosen = of_round(place)
        counts = torch.from_numpy(self._counts)[chosen]
        lap, turn = round_ // counts, round_ % counts
        of_lap = Permutation(counts, key(self.seed, _IMAGES).child(chosen).child(lap))
        places = self._first[chosen.numpy()] + of_lap(turn).numpy()
        indices: NDArray[np.int64] = self._by_label[places].astype(np.int64)
        return indices
