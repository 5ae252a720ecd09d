"""Raw pixels to numbers around 0 in one pass."""

import torch
from torch import Tensor

from facescale.backbones import backbone
from facescale.kernels.cpu import pixels as native


def normalise(pixels: Tensor, dtype: torch.dtype, scale: float) -> Tensor:
    """Pixels 0..255 to (pixels - 127.5) / scale in `dtype`; uint8 to float32 natively on CPUs."""
    if dtype == torch.float32 and native.serves(pixels):
        return native.normalise(pixels, scale)  # type: ignore[no-any-return]
    return backbone.normalise(pixels, dtype, scale)
