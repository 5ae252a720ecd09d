"""Augmentation of whole batches, on the device they lie on."""

import math
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from facescale.data.degradations import DEGRADATIONS, convolve, luma
from facescale.kernels.cpu import pixels as native_pixels
from facescale.random import Key, key

RECIPES: dict[str, dict[str, float]] = {
    "flip": {"flip": 0.5},
    "arcface_torch": {"flip": 0.5, "downscale": 0.1, "soften": 0.2, "hsv": 0.2, "grey": 0.1},
    "adaface": {"flip": 0.5, "crop": 0.2, "low_resolution": 0.2, "photometric": 0.2},
}
"""Augmentation by name: the field's standard, arcface_torch's `dali_aug`, and AdaFace's."""

# One random number of every sample belongs to each name, whether it is used or not: so turning
# one thing on changes nothing else.
_DRAWS = (
    *("flip", "shift_x", "shift_y", "scale", "rotate", "brightness", "contrast", "saturation"),
    *("grey", "blur", "erase", "erase_x", "erase_y"),
)


@dataclass(frozen=True, kw_only=True)
class Augment:
    """How images change at random. The field's standard, and the default, is to flip half of them.

    `flip`, `grey` and the seven of `data.degradations` (`crop` to `jpeg`) are probabilities. All
    others are the largest change: each sample draws its own amount, uniformly; 0 turns it off.

    Attributes:
        flip: Probability of a left-right mirror image.
        shift: Pixels, each way on both axes; whole ones, so that nothing blurs.
        scale: 0.1 enlarges or shrinks by up to a tenth.
        rotate: Degrees, each way.
        brightness: 0.2 multiplies all pixels by 0.8 to 1.2.
        contrast: 0.2 multiplies the distance from the image's mean by 0.8 to 1.2.
        saturation: 0.2 multiplies the distance from grey by 0.8 to 1.2.
        grey: Probability that all colour goes.
        blur: Standard deviation of a Gaussian, in pixels.
        erase: Side, in pixels, of a square that becomes mid-grey.
        crop: Of an image that is black but for a rectangle of 20 % to 100 % of it.
        low_resolution: Of one that was 20 % to 100 % as large, by a random interpolation.
        downscale: Of one that was 50 % to 80 % as large.
        soften: Of a Gaussian window of 3 or 5 pixels.
        hsv: Of a hue turned by up to 20 degrees and a saturation raised by up to a fifth.
        photometric: Of brightness, contrast and saturation multiplied by 0.5 to 1.5.
        jpeg: Of a JPEG of quality 10 to 90.
    """

    flip: float = 0.5
    shift: int = 0
    scale: float = 0.0
    rotate: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    grey: float = 0.0
    blur: float = 0.0
    erase: int = 0
    crop: float = 0.0
    low_resolution: float = 0.0
    downscale: float = 0.0
    soften: float = 0.0
    hsv: float = 0.0
    photometric: float = 0.0
    jpeg: float = 0.0

    def __post_init__(self) -> None:
        for name in (field.name for field in fields(self)):
            value = getattr(self, name)
            limit = math.inf if name in ("shift", "rotate", "blur", "erase") else 1
            if not 0 <= value <= limit or (name == "scale" and value == 1):
                raise ValueError(f"augment.{name} must be in [0, {limit}], got {value}")

    def __call__(self, images: Tensor, *, seed: int, position: int) -> Tensor:
        """Augment RGB images 0..255; uint8 stays uint8 if they are flipped only, else float32.

        Args:
            images: (b, 3, height, width), uint8 or float.
            seed: Another seed, other changes.
            position: Where images[0] is in the stream of samples. The changes of a sample are a
                function of (seed, its position), so it matters not how ranks share a batch.
        """
        positions = torch.arange(position, position + len(images))[:, None]
        keys = key(seed).child(positions)
        numbers = keys.uniform(torch.arange(len(_DRAWS)))
        # Chosen on the host, which thus never waits for the device.
        images = _mirror(images, numbers[:, _DRAWS.index("flip")] < self.flip)
        if self == Augment(flip=self.flip):
            return images
        draws = dict(
            zip(_DRAWS, numbers.to(images.device, non_blocking=True).unbind(1), strict=True)
        )
        return self._change(self._degrade(images.float(), keys), draws)

    def _degrade(self, images: Tensor, keys: Key) -> Tensor:
        """Change the images that each degradation is drawn for, (b,) keys on the host."""
        for stream, (name, degradation) in enumerate(DEGRADATIONS.items()):
            if not (chance := getattr(self, name)):
                continue
            numbers = keys.child(stream).uniform(torch.arange(degradation.draws + 1))
            chosen = torch.from_numpy(np.flatnonzero(numbers[:, 0].numpy() < chance))
            if len(chosen):
                images = images.contiguous()
                places = chosen.to(images.device, non_blocking=True)
                worse = degradation.apply(images.index_select(0, places), numbers[chosen, 1:])
                images = images.index_copy(0, places, worse)
        return images

    def _change(self, images: Tensor, draws: dict[str, Tensor]) -> Tensor:
        if len(images) == 0:  # a rank without a share, on which convolutions fail
            return images
        images = images.contiguous()  # what follows is up to six times faster in planes
        if self.shift or self.scale or self.rotate:
            images = self._move(images, draws)
        if self.brightness or self.contrast or self.saturation or self.grey:
            images = self._colour(images, draws)
        if self.blur:
            images = _blur(images, self.blur * draws["blur"], math.ceil(3 * self.blur))
        if self.erase:
            images = self._erase(images, draws)
        return images.contiguous(memory_format=torch.channels_last)

    def _move(self, images: Tensor, draws: dict[str, Tensor]) -> Tensor:
        """Shift, scale and rotate about the middle in one resampling; the border is repeated."""
        height, width = images.shape[2:]
        angle = math.radians(self.rotate) * _signed(draws["rotate"])
        zoom = 1 + self.scale * _signed(draws["scale"])
        cosine, sine = _per_row(angle.cos() / zoom), _per_row(angle.sin() / zoom)
        shift_x, shift_y = (
            _per_row((draws[name] * (2 * self.shift + 1)).floor() - self.shift)
            for name in ("shift_x", "shift_y")
        )
        # Pixels from the middle: where each one comes from, by the inverse of the movement.
        y, x = (
            torch.arange(size, device=images.device) - (size - 1) / 2 for size in (height, width)
        )
        y = y[:, None]
        source_x = cosine * x + sine * y - shift_x
        source_y = cosine * y - sine * x - shift_y
        grid = torch.stack([source_x * (2 / width), source_y * (2 / height)], 3)
        return F.grid_sample(images, grid, padding_mode="border", align_corners=False)

    def _colour(self, images: Tensor, draws: dict[str, Tensor]) -> Tensor:
        """Change saturation, then contrast, then brightness: together one linear map."""
        saturation = 1 + self.saturation * _signed(draws["saturation"])
        saturation = _per_image(saturation.where(draws["grey"] >= self.grey, 0))
        contrast = _per_image(1 + self.contrast * _signed(draws["contrast"]))
        brightness = _per_image(1 + self.brightness * _signed(draws["brightness"]))
        light = luma(images)
        gain = brightness * contrast
        mean = light.mean((2, 3), keepdim=True)
        grey: Tensor = gain * (1 - saturation) * light + (brightness - gain) * mean
        return (gain * saturation * images + grey).clamp(0, 255)

    def _erase(self, images: Tensor, draws: dict[str, Tensor]) -> Tensor:
        side = (draws["erase"] * (self.erase + 1)).floor()
        inside = []
        for axis, name in ((2, "erase_y"), (3, "erase_x")):
            place = torch.arange(images.shape[axis], device=images.device)
            start = (draws[name] * (images.shape[axis] - side + 1)).floor()
            inside.append((place >= start[:, None]) & (place < (start + side)[:, None]))
        square = inside[0][:, None, :, None] & inside[1][:, None, None, :]
        return images.masked_fill(square, 127.5)


def augmentation(recipe: str = "flip", **amounts: float | None) -> Augment:
    """A recipe by name, with those of its amounts changed that are not None.

    Raises:
        ValueError: There is no such recipe, or an amount is out of its range.
    """
    if recipe not in RECIPES:
        raise ValueError(f"augment.recipe is {recipe!r}; choose one of {', '.join(RECIPES)}")
    changed = {name: amount for name, amount in amounts.items() if amount is not None}
    return Augment(**({"flip": 0.0} | RECIPES[recipe] | changed))  # type: ignore[arg-type]


def _mirror(images: Tensor, chosen: Tensor) -> Tensor:
    """Flip the images that are `chosen`, (b,) of bool on the host, left to right."""
    if images.shape[1] == 3 and native_pixels.serves(images):
        return native_pixels.mirror(images, chosen)  # type: ignore[no-any-return]
    places = chosen.nonzero()[:, 0].to(images.device, non_blocking=True)
    pixels = images.permute(0, 2, 3, 1)  # as they lie in memory: several times faster
    return pixels.index_copy(0, places, pixels.index_select(0, places).flip(2)).permute(0, 3, 1, 2)


def _blur(images: Tensor, sigma: Tensor, radius: int) -> Tensor:
    """Convolve each image with a Gaussian of its own `sigma` (b,); the border is repeated."""
    offset = torch.arange(-radius, radius + 1, device=images.device)
    # Sigma 0 is no blur: all weight is on the middle tap.
    weights = torch.exp(-0.5 * (offset / sigma.clamp(min=1e-3)[:, None]) ** 2)  # (b, taps)
    return convolve(images, weights / weights.sum(1, keepdim=True), "replicate")


def _signed(draw: Tensor) -> Tensor:
    """From [0, 1) to [-1, 1)."""
    return 2 * draw - 1


def _per_image(values: Tensor) -> Tensor:
    return values[:, None, None, None]


def _per_row(values: Tensor) -> Tensor:
    return values[:, None, None]
