"""The building blocks that MobileFaceNet and neck GDC share."""

from facescale.acceleration.conv import Conv2d
from facescale.acceleration.prelu import PReLU
from facescale.acceleration.sequence import Layers
from facescale.kernels.cpu.norm import BatchNorm2d


def conv_bn(
    in_channels: int,
    channels: int,
    kernel: int,
    *,
    eps: float,
    stride: int = 1,
    groups: int = 1,
    padding: int | None = None,
) -> Layers:
    """Convolution without bias, then BatchNorm; `padding` None keeps the size at stride 1."""
    conv = Conv2d(
        in_channels,
        channels,
        kernel,
        stride,
        padding=kernel // 2 if padding is None else padding,
        groups=groups,
        bias=False,
    )
    return Layers(conv, BatchNorm2d(channels, eps=eps))


def conv_bn_prelu(
    in_channels: int, channels: int, kernel: int, *, eps: float, stride: int = 1, groups: int = 1
) -> Layers:
    """`conv_bn` followed by a PReLU with one slope per channel."""
    block = conv_bn(in_channels, channels, kernel, eps=eps, stride=stride, groups=groups)
    block.layers.append(PReLU(channels))
    return block
