"""Convolutions that in training on CPUs are native where that is faster than oneDNN."""

from torch import Tensor, nn

from facescale.kernels.cpu.depthwise import Depthwise, Grouped
from facescale.kernels.cpu.dispatch import kernels
from facescale.kernels.cpu.winograd import Winograd

WIDE = 128  # channels from which on Winograd saves more in products than its passes cost


class Conv2d(nn.Conv2d):
    """`torch.nn.Conv2d`: the same values, weights and gradients but for rounding.

    Native are 3x3 convolutions of padding 1 without bias: in groups of one or two channels, and
    dense ones of stride 1 with many channels; see `kernels` for the images they take.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(b, in_channels, h, w) to (b, channels, h', w')."""
        if self.training and input.numel():
            if Grouped.serves(self) and kernels("depthwise", input, self.weight) is not None:
                return Depthwise.apply(input, self.weight, self.stride[0])  # type: ignore[no-any-return,no-untyped-call]
            native = kernels("winograd", input, self.weight) if self._is_wide() else None
            if native is not None:
                return Winograd.apply(native, input, self.weight)  # type: ignore[no-any-return,no-untyped-call]
        return super().forward(input)

    def _is_wide(self) -> bool:
        """Whether Winograd pays."""
        return (
            self.kernel_size == (3, 3)
            and self.padding == (1, 1)
            and self.dilation == (1, 1)
            and self.stride == (1, 1)
            and self.bias is None
            and self.groups == 1
            and min(self.in_channels, self.out_channels) >= WIDE
        )
