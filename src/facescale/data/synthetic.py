"""Made-up data of any size, to measure speed without disk and decoding."""

from dataclasses import dataclass, field

import torch

from facescale.data.images import IMAGE_SIZE, Pixels, Sample
from facescale.random import key

_POOL_SIZE = 16
_IMAGE, _POOL = range(2)  # keys of the random numbers


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
        shape = (_POOL_SIZE, IMAGE_SIZE, IMAGE_SIZE, 3)
        counters = torch.arange(torch.Size(shape).numel())
        pool = (key(self.seed, _POOL).bits(counters) >> 24).to(torch.uint8).view(shape)
        object.__setattr__(self, "_pool", pool.numpy())

    def __len__(self) -> int:
        return self.num_images

    def read(self, index: int) -> Sample:
        """Image `index` as pixels (112, 112, 3), and its label."""
        low, high = key(self.seed, _IMAGE, index)
        label = (high << 32 | low) // _POOL_SIZE % self.num_classes
        return Sample(self._pool[low % _POOL_SIZE], label)

    def describe(self, index: int) -> str:
        """`synthetic image 17`."""
        return f"synthetic image {index}"
