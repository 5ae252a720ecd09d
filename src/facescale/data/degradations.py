"""What AdaFace and arcface_torch do to some training images, for parts of a batch on its device.

Each function takes images (k, 3, height, width), float32 RGB 0..255, and uniform random numbers
(k, draws) on the host, and returns images of the same kind.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from facescale.data.jpeg import jpeg
from facescale.data.resampling import METHODS, resize_matrices

Sizes = tuple[int | Tensor, int | Tensor]

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue: ITU-R BT.601, as in JPEG."""

_TRIES = 10
_AREA, _RATIO = (0.2, 1.0), (3 / 4, 4 / 3)
# Rows Y, I and Q, as in DALI.
_YIQ = torch.tensor([LUMA, (0.596, -0.274, -0.321), (0.211, -0.523, 0.311)])
_ORDERS = torch.tensor([(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)])


def crop(images: Tensor, numbers: Tensor) -> Tensor:
    """Make all black but a rectangle of 20 % to 100 % of the area, of ratio 3/4 to 4/3.

    The face stays where it was. The rectangle is drawn as by torchvision's `RandomResizedCrop`:
    the first of ten that fits, or the whole image. Source: Kim et al., AdaFace, CVPR 2022.
    """
    height, width = images.shape[2:]
    draws = numbers[:, : 2 * _TRIES].view(-1, 2, _TRIES)
    area = (_AREA[0] + (_AREA[1] - _AREA[0]) * draws[:, 0]) * (height * width)
    low, high = map(math.log, _RATIO)
    ratio = (low + (high - low) * draws[:, 1]).exp()
    wide, tall = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
    fits = (wide <= width) & (tall <= height)
    first = fits.long().argmax(1, keepdim=True)
    found = fits.any(1)
    boxes = []
    for sides, size, draw in ((tall, height, numbers[:, -2]), (wide, width, numbers[:, -1])):
        side = torch.where(found, sides.gather(1, first)[:, 0], size)
        start = (draw * (size - side + 1)).floor()
        place = torch.arange(size)
        boxes.append((place >= start[:, None]) & (place < (start + side)[:, None]))
    rows, columns = (inside.to(images.device, non_blocking=True) for inside in boxes)
    return images * (rows[:, None, :, None] & columns[:, None, None, :])


def low_resolution(images: Tensor, numbers: Tensor) -> Tensor:
    """Shrink to 20 % to 100 % of the side and enlarge again, each by a random interpolation.

    The interpolations are OpenCV's: nearest, linear, area, cubic, Lanczos. Source: AdaFace.
    """
    sides = ((0.2 + 0.8 * numbers[:, 0]) * images.shape[2]).floor()
    shrink, enlarge = (numbers[:, 1:3] * 5).floor().long().unbind(1)
    return _there_and_back(images, sides.long(), shrink, enlarge)


def downscale(images: Tensor, numbers: Tensor) -> Tensor:
    """Shrink to 50 % to 80 % of the side and enlarge again, linearly.

    Shrinking averages, as DALI does. Source: arcface_torch's `dali_aug`.
    """
    size = images.shape[2]
    low, high = int(0.5 * size), int(0.8 * size)
    sides = (low + (high - low) * numbers[:, 0]).round().long()
    shrink = torch.full_like(sides, METHODS.index("triangle"))
    return _there_and_back(images, sides, shrink, torch.full_like(sides, METHODS.index("linear")))


def _there_and_back(images: Tensor, sides: Tensor, shrink: Tensor, enlarge: Tensor) -> Tensor:
    """Resize to `sides` (k,) times the ratio of the image, and back, in steps of whole levels."""
    device = images.device
    sides, shrink, enlarge = (x.to(device, non_blocking=True) for x in (sides, shrink, enlarge))
    height, width = images.shape[2:]
    heights, widths = sides, sides * width // height

    def resize(source: Sizes, target: Sizes, method: Tensor) -> Tensor:
        rows = resize_matrices(source[0], target[0], method, height)[:, None]
        columns = resize_matrices(source[1], target[1], method, width)[:, None]
        return (rows @ images @ columns.mT).round().clamp(0, 255)

    images = resize((height, width), (heights, widths), shrink)
    return resize((heights, widths), (height, width), enlarge)


def soften(images: Tensor, numbers: Tensor) -> Tensor:
    """Blur with a Gaussian window of 3 or 5 pixels, sigma 0.8 or 1.1.

    Source: arcface_torch's `dali_aug`; DALI takes sigma from the window as OpenCV does.
    """
    radius = 1 + (numbers[:, :1] >= 0.5).float()
    offset = torch.arange(-2, 3)
    weights = torch.exp(-0.5 * (offset / (0.3 * (radius - 1) + 0.8)) ** 2)
    weights = weights.where(offset.abs() <= radius, 0)
    weights = (weights / weights.sum(1, keepdim=True)).to(images.device, non_blocking=True)
    return convolve(images, weights, "reflect")


def convolve(images: Tensor, weights: Tensor, border: str) -> Tensor:
    """Convolve each image with its own `weights` (k, taps) along both axes."""
    radius = weights.shape[1] // 2
    weights = weights.repeat_interleave(3, dim=0)
    planes = F.pad(images.flatten(0, 1)[None], (radius,) * 4, mode=border)
    planes = F.conv2d(planes, weights[:, None, :, None], groups=len(weights))
    planes = F.conv2d(planes, weights[:, None, None, :], groups=len(weights))
    return planes.view(images.shape)


def hsv(images: Tensor, numbers: Tensor) -> Tensor:
    """Turn the hue by 0 to 20 degrees and multiply the saturation by 1 to 1.2, in YIQ.

    Source: arcface_torch's `dali_aug`.
    """
    angle = math.radians(20) * numbers[:, 0]
    saturation = 1 + 0.2 * numbers[:, 1]
    cosine, sine = saturation * angle.cos(), saturation * angle.sin()
    turn = torch.zeros(len(numbers), 3, 3)
    turn[:, 0, 0] = 1
    turn[:, 1, 1] = turn[:, 2, 2] = cosine
    turn[:, 1, 2], turn[:, 2, 1] = sine, -sine
    matrix = (torch.linalg.inv_ex(_YIQ).inverse @ turn @ _YIQ).to(images.device, non_blocking=True)
    turned: Tensor = (matrix @ images.flatten(2)).view(images.shape).clamp(0, 255)
    return turned


def photometric(images: Tensor, numbers: Tensor) -> Tensor:
    """Multiply brightness, contrast and saturation by 0.5 to 1.5, in a random order.

    As torchvision's `ColorJitter(0.5, 0.5, 0.5)`. Source: AdaFace.
    """
    orders = _ORDERS[(numbers[:, 3] * len(_ORDERS)).long()]
    factors = (0.5 + numbers[:, :3]).gather(1, orders)
    kinds = orders.to(images.device, non_blocking=True)[..., None, None, None]
    factors = factors.to(images.device, non_blocking=True)[..., None, None, None]
    for kind, factor in zip(kinds.unbind(1), factors.unbind(1), strict=True):
        grey = luma(images)
        mean = grey.mean((2, 3), keepdim=True)
        nothing = torch.where(kind == 1, mean, torch.where(kind == 2, grey, 0.0))
        images = (factor * images + (1 - factor) * nothing).clamp(0, 255)
    return images


def luma(images: Tensor) -> Tensor:
    """The brightness of each pixel, (k, 1, height, width)."""
    red, green, blue = images.split(1, dim=1)
    light: Tensor = LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue
    return light


class Degradation(NamedTuple):
    """A change of some images, and how many random numbers it takes for each."""

    draws: int
    apply: Callable[[Tensor, Tensor], Tensor]


DEGRADATIONS = {
    "crop": Degradation(2 * _TRIES + 2, crop),
    "low_resolution": Degradation(3, low_resolution),
    "downscale": Degradation(1, downscale),
    "soften": Degradation(1, soften),
    "hsv": Degradation(2, hsv),
    "photometric": Degradation(4, photometric),
    "jpeg": Degradation(1, jpeg),
}
"""All of them by name, in the order in which they are applied; random numbers follow the order."""
