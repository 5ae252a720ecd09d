"""Convolutions that in training on CPUs are native where that is faster than oneDNN."""

from torch import Tensor, nn

from facescale.backbones.depthwise import Depthwise
from facescale.backbones.winograd import Winograd
from facescale.native.kernels import kernels

WIDE = 128  # channels from which on Winograd saves more in products than its passes cost


class Conv2d(nn.Conv2d):
    """`torch.nn.Conv2d`: the same values, weights and gradients but for rounding.

    Native are 3x3 convolutions of padding 1 without bias: in groups of one or two channels, and
    dense ones of stride 1 with many channels; see `kernels` for the images they take.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(b, in_channels, h, w) to (b, channels, h', w')."""
        name = self._kernel() if self.training and input.numel() else None
        native = None if name is None else kernels(name, input, self.weight)
        if native is None:
            return super().forward(input)
        if name == "depthwise":
            return Depthwise.apply(native, input, self.weight, self.stride[0])  # type: ignore[no-any-return,no-untyped-call]
        return Winograd.apply(native, input, self.weight)  # type: ignore[no-any-return,no-untyped-call]

    def _kernel(self) -> str | None:
        """Which native kernel has this kind of convolution."""
        is_known = (
            self.kernel_size == (3, 3)
            and self.padding == (1, 1)
            and self.dilation == (1, 1)
            and self.bias is None
        )
        in_group = self.in_channels // self.groups
        is_square = self.in_channels == self.out_channels and self.groups > 1
        if is_known and is_square and in_group <= 2 and self.stride in ((1, 1), (2, 2)):
            return "depthwise"
        is_wide = min(self.in_channels, self.out_channels) >= WIDE and self.groups == 1
        return "winograd" if is_known and is_wide and self.stride == (1, 1) else None
