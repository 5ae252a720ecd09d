"""Align a face to the ArcFace template: five points, a similarity transform, a bilinear warp.

The numbers follow InsightFace to the last bit: its points and template in float32, scikit-image's
`SimilarityTransform` (0.26) and OpenCV's `warpAffine` (5.0). OpenCV 4 interpolates on a grid of
1/32 pixel instead, which changes one pixel value in fifteen by up to 3.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from facescale.data.images import IMAGE_SIZE, Pixels

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]

# InsightFace adds 8 to the x of a template of width 96 in float32; the last bits depend on it.
TEMPLATE: Singles = np.array(
    [
        [30.2946, 51.6963],
        [65.5318, 51.5014],
        [48.0252, 71.7366],
        [33.5493, 92.3655],
        [62.7299, 92.2041],
    ],
    np.float32,
) + np.array([8, 0], np.float32)
"""Left eye, right eye, nose, left and right corner of the mouth in a 112 x 112 image, (5, 2)."""


def align(pixels: Pixels, points: ArrayLike, size: int = IMAGE_SIZE) -> Pixels:
    """Cut a face out so that its points lie on the template.

    Args:
        pixels: RGB (height, width, 3), uint8.
        points: (5, 2) as x, y in pixels of the image, in the order of `TEMPLATE`.
        size: Height and width of the result; the template is scaled with it.

    Returns:
        RGB (size, size, 3), uint8. What lies outside of the image is black.

    Raises:
        ValueError: Not five finite points, or all in one place.
    """
    template = TEMPLATE if size == IMAGE_SIZE else TEMPLATE * np.float32(size / IMAGE_SIZE)
    return warp(pixels, similarity(points, template), size)


def similarity(points: ArrayLike, template: Singles = TEMPLATE) -> Floats:
    """The rotation, scale and shift that brings `points` nearest to `template`, (2, 3).

    Least squares. Source: Umeyama, PAMI 1991.
    """
    source = np.asarray(points, np.float32)
    if source.shape != template.shape or not np.isfinite(source).all():
        raise ValueError(f"alignment needs {len(template)} finite points (x, y), got {source}")
    mean, target_mean = source.mean(axis=0), template.mean(axis=0)
    centred = source - mean
    spread = centred.var(axis=0).sum()
    if spread == 0:
        raise ValueError(f"all points lie at {source[0].tolist()}: no face can be aligned to them")
    covariance = (template - target_mean).T @ centred / len(source)
    left, singular, right = np.linalg.svd(covariance)
    signs = np.array([1.0, -1.0 if np.linalg.det(covariance) < 0 else 1.0])  # no reflection
    rotation = left @ np.diag(signs) @ right
    scale = 1.0 / spread * (singular @ signs)
    shift = target_mean - scale * (rotation @ mean)
    return np.column_stack([scale * rotation, shift])


def warp(pixels: Pixels, matrix: Floats, size: int = IMAGE_SIZE) -> Pixels:
    """Move an image (height, width, 3) by an affine `matrix` (2, 3) into (size, size, 3)."""
    inverse = _inverse(matrix).astype(np.float32)
    column = np.arange(size, dtype=np.float32)
    row = column[:, None]
    x = _fma(column, inverse[0, 0], row * inverse[0, 1] + inverse[0, 2])
    y = _fma(column, inverse[1, 0], row * inverse[1, 1] + inverse[1, 2])
    left, top = np.floor(x), np.floor(y)
    right_part, lower_part = (x - left)[..., None], (y - top)[..., None]
    height, width = pixels.shape[:2]
    bordered = np.zeros((height + 4, width + 4, 3), np.uint8)
    bordered[2:-2, 2:-2] = pixels
    i = np.clip(top, -2, height).astype(np.intp) + 2  # far outside, both neighbours are border
    j = np.clip(left, -2, width).astype(np.intp) + 2
    corners = (bordered[i + a, j + b].astype(np.float32) for a in (0, 1) for b in (0, 1))
    upper_left, upper_right, lower_left, lower_right = corners
    upper = _fma(right_part, upper_right - upper_left, upper_left)
    lower = _fma(right_part, lower_right - lower_left, lower_left)
    return np.rint(_fma(lower_part, lower - upper, upper)).astype(np.uint8)


def _inverse(matrix: Floats) -> Floats:
    """Of an affine map (2, 3)."""
    (a, b, x), (c, d, y) = matrix
    scale = 1.0 / (a * d - b * c)
    a, b, c, d = d * scale, -b * scale, -c * scale, a * scale
    return np.array([[a, b, -a * x - b * y], [c, d, -c * x - d * y]])


def _fma(a: Singles, b: Singles | np.float32, c: Singles) -> Singles:
    """`a * b + c` rounded once to float32, as the processor's instruction that OpenCV uses."""
    return (a.astype(np.float64) * b + c).astype(np.float32)
