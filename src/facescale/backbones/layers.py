"""The building blocks that MobileFaceNet and neck GDC share."""

from torch import Tensor, nn


class Layers(nn.Module):
    """Layers in sequence, kept under `layers`: a level that arcface_torch's weight names have."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layers in order."""
        y: Tensor = self.layers(x)
        return y


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
    conv = nn.Conv2d(
        in_channels,
        channels,
        kernel,
        stride,
        padding=kernel // 2 if padding is None else padding,
        groups=groups,
        bias=False,
    )
    return Layers(conv, nn.BatchNorm2d(channels, eps=eps))


def conv_bn_prelu(
    in_channels: int, channels: int, kernel: int, *, eps: float, stride: int = 1, groups: int = 1
) -> Layers:
    """`conv_bn` followed by a PReLU with one slope per channel."""
    block = conv_bn(in_channels, channels, kernel, eps=eps, stride=stride, groups=groups)
    block.layers.append(nn.PReLU(channels))
    return block
