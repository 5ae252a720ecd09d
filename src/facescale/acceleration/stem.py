"""The first convolution of a network on a CUDA device, with channels of zeros where that is faster.

Tensor cores take channels in groups of 16 bytes. For an image of three channels cuDNN would fall
back to other algorithms, or pad the image in each pass by itself.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, pad

from facescale.kernels.cuda import runs_on

GROUP_BYTES = 16
FEW = 4  # input channels of a first convolution, at most


class Conv2d(nn.Conv2d):
    """`torch.nn.Conv2d`; with few input channels, image and weight get channels of zeros.

    Results and gradients are those of the plain convolution but for the order of sums.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(b, in_channels, h, w) to (b, channels, h', w')."""
        more = self._missing(input)
        if not more:
            return super().forward(input)
        kind = input.device.type
        image = input.to(torch.get_autocast_dtype(kind)) if _autocast(kind) else input
        room = (0, 0, 0, 0, 0, more)
        return conv2d(
            pad(image, room), pad(self.weight, room), self.bias, self.stride, self.padding,
            self.dilation, self.groups,
        )  # fmt: skip

    def _missing(self, x: Tensor) -> int:
        """Channels of zeros that make this convolution faster."""
        plain = self.groups == 1 and self.padding_mode == "zeros" and x.ndim == 4
        if not (plain and self.in_channels <= FEW and runs_on(x.device)):
            return 0
        if not x.is_contiguous(memory_format=torch.channels_last):
            return 0
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if _autocast(kind) else x.dtype
        if dtype == torch.float64 or (dtype == torch.float32 and not _rounds()):
            return 0  # not on tensor cores
        return -self.in_channels % (GROUP_BYTES // dtype.itemsize)


def _autocast(kind: str) -> bool:
    return torch.is_autocast_enabled(kind)


def _rounds() -> bool:
    """Whether convolutions of float32 round to tf32."""
    return torch.backends.cudnn.allow_tf32
