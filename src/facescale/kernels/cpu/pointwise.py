"""1x1 convolutions, natively on CPUs: with the passes of the norms on both sides in them."""

import ctypes

from torch import Tensor, nn

from facescale.kernels.cpu.between import Between


class Pointwise(Between):
    """One convolution at stride 1; images (b, c, h, w) channels last, weights (c', c, 1, 1)."""

    name = "pointwise"

    @staticmethod
    def serves(conv: nn.Conv2d) -> bool:
        """Whether this is such a convolution."""
        is_plain = conv.groups == 1 and conv.bias is None and conv.padding == (0, 0)
        return is_plain and conv.kernel_size == (1, 1) and conv.stride == (1, 1)

    def __init__(self, x: Tensor, weight: Tensor) -> None:
        outputs, inputs = weight.shape[:2]
        super().__init__(x, weight, _Arguments(x.numel() // inputs, inputs, outputs))


class _Arguments(ctypes.Structure):
    """As `Pointwise` in native/pointwise.cpp."""

    _fields_ = tuple((name, ctypes.c_int64) for name in ("rows", "inputs", "outputs"))
