"""IResNet, the residual network of ArcFace (Deng et al., CVPR 2019, section 3.1): R18 to R200.

Weight names are arcface_torch's, so that its `model.pt` loads as it is.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from facescale.backbones.convolutional import ConvolutionalBackbone, assemble
from facescale.backbones.registry import register


@register("ir_se_50", units=(3, 4, 14, 3), squeeze=True)
@register("r200", units=(6, 26, 60, 6))
@register("r152", units=(3, 8, 36, 3))
@register("r100", units=(3, 13, 30, 3))
@register("r50", units=(3, 4, 14, 3))
@register("r34", units=(3, 4, 6, 3))
@register("r18_half", units=(2, 2, 2, 2), width=32)
@register("r18", units=(2, 2, 2, 2))
def iresnet(
    units: Sequence[int],
    width: int = 64,
    squeeze: bool = False,
    embedding_dim: int | None = None,
    neck: str = "E",
    family: str = "mxnet",
    dropout: float | None = None,
    image_size: int = 112,
    *,
    generator: torch.Generator | None = None,
) -> ConvolutionalBackbone:
    """An IResNet of `units` (see `trunk`); `embedding_dim` None is the trunk's channels.

    With `squeeze` every unit has a squeeze-and-excitation block: IR-SE.
    """
    return assemble(
        "iresnet",
        partial(trunk, units, width, squeeze=squeeze),
        channels=8 * width,
        embedding_dim=8 * width if embedding_dim is None else embedding_dim,
        neck=neck,
        family=family,
        dropout=dropout,
        image_size=image_size,
        generator=generator,
    )


def trunk(
    units: Sequence[int], width: int, eps: float, *, squeeze: bool = False
) -> dict[str, nn.Module]:
    """Layers from a normalised image (b, 3, 112, 112) to features (b, 8 * width, 7, 7).

    `units` are the residual units of the four stages, `width` the channels of the first (64 in
    all published ones), `eps` is that of every BatchNorm. There is no max-pooling: faces of 112
    pixels keep their full size in the stem.
    """
    unit = SqueezedUnit if squeeze else Unit
    return {
        "conv1": _conv3x3(3, width),
        "bn1": nn.BatchNorm2d(width, eps=eps),
        "prelu": nn.PReLU(width),
        "layer1": _stage(width, width, units[0], eps, unit),  # 112 -> 56
        "layer2": _stage(width, 2 * width, units[1], eps, unit),  # 56 -> 28
        "layer3": _stage(2 * width, 4 * width, units[2], eps, unit),  # 28 -> 14
        "layer4": _stage(4 * width, 8 * width, units[3], eps, unit),  # 14 -> 7
    }


def _stage(
    in_channels: int, channels: int, num_units: int, eps: float, unit: type["Residual"]
) -> nn.Sequential:
    """Units at one resolution; the first of them halves it."""
    return nn.Sequential(
        unit(in_channels, channels, 2, eps),
        *(unit(channels, channels, 1, eps) for _ in range(num_units - 1)),
    )


class Residual(nn.Module):
    """The layers of a unit, and its residual branch."""

    def __init__(self, in_channels: int, channels: int, stride: int, eps: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels, eps=eps)
        self.conv1 = _conv3x3(in_channels, channels)
        self.bn2 = nn.BatchNorm2d(channels, eps=eps)
        self.prelu = nn.PReLU(channels)
        self.conv2 = _conv3x3(channels, channels, stride)
        self.bn3 = nn.BatchNorm2d(channels, eps=eps)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=False),
                nn.BatchNorm2d(channels, eps=eps),
            )

    def residual(self, x: Tensor) -> Tensor:
        """(b, in_channels, h, w) to (b, channels, h / stride, w / stride), without the shortcut."""
        y: Tensor = self.conv1(self.bn1(x))
        y = self.prelu(self.bn2(y))
        branch: Tensor = self.bn3(self.conv2(y))
        return branch


class Unit(Residual):
    """Improved residual unit: BN, conv, BN, PReLU, conv, BN, and nothing after the sum.

    The second convolution carries the stride. The shortcut is the identity at stride 1, else a 1x1
    convolution and BN, also where the number of channels stays.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(b, in_channels, h, w) to (b, channels, h / stride, w / stride)."""
        y = self.residual(x)
        shortcut: Tensor = self.downsample(x)
        return y + shortcut


class SqueezedUnit(Residual):
    """A unit whose residual branch is scaled by a squeeze-and-excitation block."""

    def __init__(self, in_channels: int, channels: int, stride: int, eps: float) -> None:
        super().__init__(in_channels, channels, stride, eps)
        self.se = SqueezeExcitation(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(b, in_channels, h, w) to (b, channels, h / stride, w / stride)."""
        y: Tensor = self.se(self.residual(x))
        shortcut: Tensor = self.downsample(x)
        return y + shortcut


class SqueezeExcitation(nn.Module):
    """Scales each channel by a number in (0, 1), a function of the means of all channels.

    Source: Hu et al., Squeeze-and-excitation networks, CVPR 2018, equations 2 and 3.
    """

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, channels // reduction, 1, bias=False)
        self.fc2 = nn.Conv2d(channels // reduction, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(b, channels, h, w) to the same shape."""
        means = x.mean(dim=(2, 3), keepdim=True)
        scale: Tensor = self.fc2(self.fc1(means).relu()).sigmoid()
        return x * scale


def _conv3x3(in_channels: int, channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
