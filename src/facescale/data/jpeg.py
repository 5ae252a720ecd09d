"""The loss of JPEG compression as operations on a batch, with a quality for each image."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

_LUMINANCE = """
16 11 10 16  24  40  51  61   12 12 14 19  26  58  60  55   14 13 16 24  40  57  69  56
14 17 22 29  51  87  80  62   18 22 37 56  68 109 103  77   24 35 55 64  81 104 113  92
49 64 78 87 103 121 120 101   72 92 95 98 112 100 103  99"""
_CHROMINANCE = "17 18 24 47 99 99 99 99 18 21 26 66 99 99 99 99 24 26 56 99 99 99 99 99 47 66"
# Source of both: ITU-T T.81, annex K; the other chrominance entries are 99 as well.
_TABLES = torch.tensor(
    [
        [int(entry) for entry in _LUMINANCE.split()],
        [int(entry) for entry in _CHROMINANCE.split()] + [99] * 38,
    ]
).view(2, 8, 8)
_YCC = torch.tensor(
    [[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]]
)
_RGB = torch.tensor([[1, 0, 1.402], [1, -0.344136, -0.714136], [1, 1.772, 0]])


def jpeg(images: Tensor, numbers: Tensor) -> Tensor:
    """Compress with a quality of 10 to 90 and decompress; see `data.degradations` for arguments."""
    return compress(images, (10 + 81 * numbers[:, 0]).floor())


def compress(images: Tensor, quality: Tensor) -> Tensor:
    """What is left of RGB images 0..255 after JPEG of `quality` (k,), on the host, 1 to 100.

    Baseline JPEG with halved chroma (4:2:0) and the standard tables, as libjpeg and Pillow write.
    """
    device = images.device
    scale = torch.where(quality < 50, 5000 / quality, 200 - 2 * quality).floor()
    tables = ((_TABLES * scale[:, None, None, None] + 50) / 100).floor().clamp(1, 255)
    matrix, back, tables, cosines = (
        made.to(device, non_blocking=True) for made in (_YCC, _RGB, tables, _cosines())
    )
    height, width = images.shape[2:]
    padded = F.pad(images, (0, -width % 16, 0, -height % 16), mode="replicate")
    planes = (matrix @ padded.flatten(2)).view(padded.shape)
    bright = _quantise(planes[:, :1].round() - 128, tables[:, :1], cosines) + 128
    colour = F.avg_pool2d(planes[:, 1:], 2).round()
    colour = _quantise(colour, tables[:, 1:], cosines).round().clamp(-128, 127)
    colour = F.interpolate(colour, scale_factor=2, mode="bilinear").round()
    planes = torch.cat([bright.round().clamp(0, 255), colour], dim=1)
    restored = (back @ planes.flatten(2)).view(padded.shape)
    return restored[:, :, :height, :width].round().clamp(0, 255)


def _cosines() -> Tensor:
    """The orthonormal discrete cosine transform of 8 values, (8, 8)."""
    place = torch.arange(8.0)
    rows = torch.cos(math.pi / 8 * place[:, None] * (place + 0.5)) / 2
    rows[0] /= math.sqrt(2)
    return rows


def _quantise(planes: Tensor, tables: Tensor, cosines: Tensor) -> Tensor:
    """Round the coefficients of each block of 8 x 8 to multiples of the table (k, 1, 8, 8)."""
    size, (height, width) = planes.shape[:2], planes.shape[2:]
    blocks = planes.view(*size, height // 8, 8, width // 8, 8).transpose(3, 4)
    tables = tables[:, :, None, None]
    levels = (cosines @ blocks @ cosines.mT / tables).round() * tables
    return (cosines.mT @ levels @ cosines).transpose(3, 4).reshape(planes.shape)
