"""Options of the data: training images, augmentation, verification sets."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from facescale.config.intervals import BelowOne, Chance, Count, Interval, Section


@dataclass(frozen=True, kw_only=True)
class AugmentConfig(Section, prefix="data.augment."):
    """Augmentation of training images, on the device. What is not given is that of the recipe."""

    recipe: Literal["flip", "arcface_torch", "adaface"] = "flip"
    """The flip alone (0.5), or the list of arcface_torch or AdaFace."""
    flip: Chance | None = None
    """Chance of a mirror image."""
    shift: Annotated[int, Interval(0, 112)] | None = None
    """Largest shift along each axis, pixels."""
    scale: BelowOne | None = None
    """0.1 enlarges or shrinks by up to a tenth."""
    rotate: Annotated[float, Interval(0, 180)] | None = None
    """Largest rotation, degrees."""
    brightness: Chance | None = None
    """0.2 multiplies pixels by 0.8 to 1.2."""
    contrast: Chance | None = None
    """0.2 multiplies the distance from the mean by 0.8 to 1.2."""
    saturation: Chance | None = None
    """0.2 multiplies the distance from grey by 0.8 to 1.2."""
    grey: Chance | None = None
    """Chance of a grey image."""
    blur: Annotated[float, Interval(0, 112)] | None = None
    """Largest standard deviation of a Gaussian, pixels."""
    erase: Annotated[int, Interval(0, 112)] | None = None
    """Largest side of a square that becomes mid-grey, pixels."""
    crop: Chance | None = None
    """Chance that all becomes black but a rectangle of 20 % to 100 % of the image."""
    low_resolution: Chance | None = None
    """Chance to shrink to 20 % to 100 % and enlarge, each by a random interpolation."""
    downscale: Chance | None = None
    """Chance to shrink to 50 % to 80 % and enlarge, linearly."""
    soften: Chance | None = None
    """Chance of a Gaussian window of 3 or 5 pixels."""
    hsv: Chance | None = None
    """Chance of a hue turned by up to 20 degrees, and a saturation raised by up to a fifth."""
    photometric: Chance | None = None
    """Chance that brightness, contrast and saturation are multiplied by 0.5 to 1.5."""
    jpeg: Chance | None = None
    """Chance of JPEG compression of quality 10 to 90."""


@dataclass(frozen=True, kw_only=True)
class DataConfig(Section, prefix="data."):
    """Where the training images come from."""

    path: str | list[str] | None = None
    """RecordIO, OFRecord, tar shards, a list, or a folder of images a person; [A, B] joins sets."""
    people: Literal["apart", "by_name"] = "apart"
    """Of joined sets: all people are different, or those of the same name are the same."""
    num_classes: Count | None = None
    """Identities: of synthetic data and of the plan; of other data it is checked."""
    num_images: Count | None = None
    """Images, in the same way."""
    threads: Annotated[int, Interval(1, 1024)] | None = None
    """Threads of a rank that decode images. Not given: 2, and up to 8 beside a CUDA device."""
    prefetch: Annotated[int, Interval(1, 256)] = 4
    """Batches that are decoded in advance."""
    on_error: Literal["stop", "skip"] = "stop"
    """At an unreadable image: save and stop, or take the next one, up to 1 % (at least 100)."""
    skip: str | None = None
    """File of records that are left out, as `facescale data check --skip-list` writes it."""
    order: Literal["shuffled", "balanced"] = "shuffled"
    """Every image once an epoch, or every identity equally often, whatever its images."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig(Section, prefix="evaluation."):
    """Verification while training and at its end."""

    sets: list[str] = field(default_factory=list)
    """Verification sets: .bin files, names of such files beside the data (lfw), or "att"."""
    every: Count | None = None
    """Steps between verifications; only at the end when not given."""
    patience: Count | None = None
    """Stop after so many verifications without gain on the set of checkpoint.best."""
    batch_size: Count = 64
    """Images of a rank in the backbone at a time."""
