"""Resizing as a matrix for each image, so that a batch is resized to many sizes at once.

A resized image is `rows @ image @ columns.mT`. The interpolations are those of OpenCV's `resize`,
whose pixels come out but for the rounding of its fixed-point weights.
"""

import torch
from torch import Tensor

METHODS = ("nearest", "linear", "area", "cubic", "lanczos", "triangle")
"""OpenCV's five, and a linear one that averages when it shrinks, as DALI's and Pillow's."""

_TAPS = range(-3, 5)  # of the widest kernel
_CUBIC = -0.75  # OpenCV's choice; it decides how sharp edges become


def resize_matrices(
    source: int | Tensor, target: int | Tensor, method: Tensor, size: int
) -> Tensor:
    """The matrix that resizes a line of pixels, for each image; (k, size, size) in float32.

    Row i < target holds the weights of the pixels j < source for pixel i; all others are 0.

    Args:
        source: Length of the line, a number or (k,); at most `size`.
        target: Length that it gets, likewise.
        method: (k,) index in `METHODS`.
        size: Rows and columns of the matrices.
    """
    device = method.device
    columns = torch.arange(size, device=device)
    rows = columns[:, None]
    sources, targets = (
        # Not torch.tensor(), whose copy to a device the host waits for.
        (length if isinstance(length, Tensor) else torch.full_like(method, length))[:, None, None]
        for length in (source, target)
    )
    chosen = method[:, None, None]
    step = sources / targets
    matrices = _by_taps(rows, columns, sources, targets, chosen)
    overlap = torch.minimum((rows + 1) * step, columns + 1) - torch.maximum(rows * step, columns)
    shrinks = targets < sources
    matrices = torch.where((chosen == 2) & shrinks, overlap.clamp(min=0) / step, matrices)
    distance = (columns + 0.5 - (rows + 0.5) * step).abs() / step
    triangle = (1 - distance).clamp(min=0) * (columns < sources)
    triangle = triangle / triangle.sum(2, keepdim=True).clamp(min=1e-6)
    matrices = torch.where((chosen == 5) & shrinks, triangle, matrices)
    return matrices * ((rows < targets) & (columns < sources))


def _by_taps(rows: Tensor, columns: Tensor, sources: Tensor, targets: Tensor, m: Tensor) -> Tensor:
    """Interpolation between neighbours; beyond the border the last pixel is repeated."""
    place = (rows + 0.5) * (sources / targets) - 0.5  # (k, size, 1)
    base = place.floor()
    part = place - base
    exact = rows * sources // targets  # in whole numbers, where rounding would choose a neighbour
    # Enlarging by area is linear, but a pixel keeps its value over most of its area.
    reach = ((rows + 1) - (exact + 1) * (targets / sources)).clamp(min=0)
    by_index = (m == 0) | (m == 2)
    base = torch.where(by_index, exact, base.long())
    part = torch.where(m == 0, 0.0, torch.where(m == 2, reach - reach.floor(), part))
    offsets = torch.arange(_TAPS.start, _TAPS.stop, device=rows.device)
    t = offsets - part  # (k, size, taps): distance of each tap
    x = t.abs()
    linear = (1 - x).clamp(min=0)
    near = ((_CUBIC + 2) * x - (_CUBIC + 3)) * x * x + 1
    far = ((_CUBIC * x - 5 * _CUBIC) * x + 8 * _CUBIC) * x - 4 * _CUBIC
    cubic = torch.where(x <= 1, near, torch.where(x < 2, far, 0.0))
    lanczos = torch.where(x < 4, torch.sinc(t) * torch.sinc(t / 4), 0.0)
    lanczos = lanczos / lanczos.sum(2, keepdim=True)
    weights = torch.where(m == 3, cubic, torch.where(m == 4, lanczos, linear))
    matrices = torch.zeros(1, device=rows.device)
    for number, offset in enumerate(_TAPS):
        tap = torch.minimum((base + offset).clamp(min=0), sources - 1)
        matrices = matrices + weights[..., number : number + 1] * (tap == columns)
    return matrices
