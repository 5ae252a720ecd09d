"""MobileFaceNet (Chen et al., CCBR 2018) as InsightFace trains it, in MXNet and in arcface_torch.

Weight names are arcface_torch's, so that its `model.pt` loads as it is.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from facescale.backbones.convolutional import ConvolutionalBackbone, assemble
from facescale.backbones.layers import Layers, conv_bn, conv_bn_prelu
from facescale.backbones.registry import register


@register(
    "mbf_large",
    blocks=(2, 8, 12, 4),
    width=256,
    first_expansion=128,
    embedding_dim=512,
    family="arcface_torch",
)
@register(
    "mbf",
    blocks=(1, 4, 6, 2),
    width=128,
    first_expansion=128,
    embedding_dim=512,
    family="arcface_torch",
)
@register("y2", blocks=(2, 8, 16, 4), embedding_dim=256)
@register("y1", blocks=(1, 4, 6, 2))
def mobilefacenet(
    blocks: Sequence[int],
    width: int = 64,
    first_expansion: int = 64,
    embedding_dim: int = 128,
    neck: str = "GDC",
    family: str = "mxnet",
    dropout: float | None = None,
    image_size: int = 112,
    *,
    generator: torch.Generator | None = None,
) -> ConvolutionalBackbone:
    """A MobileFaceNet of `blocks`, `width` and `first_expansion` (see `trunk`)."""
    return assemble(
        "mobilefacenet",
        partial(trunk, blocks, width, first_expansion),
        channels=512,
        embedding_dim=embedding_dim,
        neck=neck,
        family=family,
        dropout=dropout,
        image_size=image_size,
        generator=generator,
    )


def trunk(
    blocks: Sequence[int], width: int, first_expansion: int, eps: float
) -> dict[str, nn.Module]:
    """Layers from a normalised image (b, 3, 112, 112) to features (b, 512, 7, 7).

    `blocks` are the residual bottlenecks at 56, 28, 14 and 7 pixels; one block at 56 means a plain
    3x3 convolution in 64 groups instead, more expand to `first_expansion` channels. `width` is the
    channels at 56 and 28 pixels, doubled below. `eps` is that of every BatchNorm.
    """
    wide = 2 * width
    return {
        "layers": nn.Sequential(
            conv_bn_prelu(3, width, 3, stride=2, eps=eps),  # 112 -> 56
            conv_bn_prelu(width, width, 3, groups=64, eps=eps)
            if blocks[0] == 1
            else _residuals(width, first_expansion, blocks[0], eps),
            Bottleneck(width, 128, width, 2, eps),  # 56 -> 28
            _residuals(width, 128, blocks[1], eps),
            Bottleneck(width, 256, wide, 2, eps),  # 28 -> 14
            _residuals(wide, 256, blocks[2], eps),
            Bottleneck(wide, 512, wide, 2, eps),  # 14 -> 7
            _residuals(wide, 256, blocks[3], eps),
        ),
        "conv_sep": conv_bn_prelu(wide, 512, 1, eps=eps),
    }


def _residuals(channels: int, expansion: int, count: int, eps: float) -> Layers:
    return Layers(*(Bottleneck(channels, expansion, channels, 1, eps) for _ in range(count)))


class Bottleneck(Layers):
    """1x1 expansion, 3x3 depthwise, 1x1 projection without activation; residual at stride 1."""

    def __init__(
        self, in_channels: int, expansion: int, channels: int, stride: int, eps: float
    ) -> None:
        super().__init__(
            conv_bn_prelu(in_channels, expansion, 1, eps=eps),
            conv_bn_prelu(expansion, expansion, 3, stride=stride, groups=expansion, eps=eps),
            conv_bn(expansion, channels, 1, eps=eps),
        )
        self.is_residual = stride == 1

    def forward(self, x: Tensor) -> Tensor:
        """(b, in_channels, h, w) to (b, channels, h / stride, w / stride)."""
        y = super().forward(x)
        return y + x if self.is_residual else y
