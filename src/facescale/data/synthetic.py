"""Made-up data of any size, to measure speed without disk and decoding."""

from dataclasses import dataclass, field

import numpy as np

from facescale.data.images import IMAGE_SIZE, Pixels, Sample
from facescale.random import hash64

_POOL_SIZE = 16


@dataclass(frozen=True)
class Synthetic:
    """Noise images with labels that spread over all classes; the memory needed is always the same.

    An image and its label are functions of (seed, index); they have nothing to do with each other.

    Attributes:
        num_classes: How many people, at least 1.
        num_images: How many images, at least 1.
        seed: Another seed, other images and labels.
    """

    num_classes: int
    num_images: int
    seed: int = 0
    _pool: Pixels = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("num_classes", "num_images"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        noise = np.random.default_rng(self.seed)
        shape = (_POOL_SIZE, IMAGE_SIZE, IMAGE_SIZE, 3)
        object.__setattr__(self, "_pool", noise.integers(0, 256, shape, np.uint8))

    def __len__(self) -> int:
        return self.num_images

    def read(self, index: int) -> Sample:
        """Image `index` as pixels (112, 112, 3), and its label."""
        bits = int(hash64(self.seed, index)[0])
        return Sample(self._pool[bits % _POOL_SIZE], bits // _POOL_SIZE % self.num_classes)

    def describe(self, index: int) -> str:
        """`synthetic image 17`."""
        return f"synthetic image {index}"
