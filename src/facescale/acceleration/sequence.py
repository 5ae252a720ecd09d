"""Layers one after the other, with as many of them at once as the native operators can do."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from facescale.acceleration.chain import can_add, chain_of, is_alone, run
from facescale.acceleration.pixels import normalise
from facescale.backbones.convolutional import ConvolutionalBackbone
from facescale.backbones.iresnet import Unit
from facescale.backbones.layers import Layers
from facescale.backbones.mobilefacenet import Bottleneck
from facescale.kernels.cpu.workspace import shared_workspace


def in_sequence(layers: Iterable[nn.Module], x: Tensor, shortcut: Tensor | None = None) -> Tensor:
    """Apply `layers` to `x` one after the other, and add `shortcut` (b, c, h, w) if there is one.

    Containers among them are taken apart, so that chains reach across their borders.
    """
    remaining = list(_flat(layers))
    while remaining:
        links = chain_of(remaining, x)
        if links:
            del remaining[: sum(map(len, links))]
            is_last = not remaining and can_add(links, x, shortcut)
            x = run(links, x, shortcut if is_last else None)
            shortcut = None if is_last else shortcut
        else:
            x = remaining.pop(0)(x)
    return x if shortcut is None else x + shortcut


def _flat(layers: Iterable[nn.Module]) -> Iterator[nn.Module]:
    """The layers inside plain sequences to which no hook listens."""
    for layer in layers:
        inner = _inside(layer) if is_alone(layer) else None
        if inner is None:
            yield layer
        else:
            yield from _flat(inner)


def _inside(layer: nn.Module) -> Iterable[nn.Module] | None:
    """The layers of a container that does nothing but apply them in order."""
    if type(layer) in (nn.Sequential, ChainedSequential):
        return layer  # type: ignore[return-value]
    if type(layer) in (Layers, ChainedLayers):
        return [layer.layers]  # type: ignore[list-item]
    if type(layer) in (Bottleneck, ChainedBottleneck) and not layer.is_residual:
        return [layer.layers]  # type: ignore[list-item]
    return None


class ChainedSequential(nn.Sequential):
    """`torch.nn.Sequential` in chains."""

    def forward(self, input: Tensor) -> Tensor:
        """Apply the layers in order."""
        return in_sequence(self, input)


class ChainedLayers(Layers):
    """`Layers` in chains."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layers in order."""
        return in_sequence([self.layers], x)


class ChainedBottleneck(Bottleneck):
    """MobileFaceNet's bottleneck in chains."""

    def forward(self, x: Tensor) -> Tensor:
        """(b, in_channels, h, w) to (b, channels, h / stride, w / stride)."""
        return in_sequence([self.layers], x, x if self.is_residual else None)


class ChainedUnit(Unit):
    """IResNet's unit in chains."""

    def forward(self, x: Tensor) -> Tensor:
        """(b, in_channels, h, w) to (b, channels, h / stride, w / stride)."""
        layers = (self.bn1, self.conv1, self.bn2, self.prelu, self.conv2, self.bn3)
        return in_sequence(layers, x, in_sequence([self.downsample], x))


class ChainedBackbone(ConvolutionalBackbone):
    """A trunk and a neck in chains, behind one pass over the pixels, with shared scratch memory."""

    def forward(self, pixels: Tensor) -> Tensor:
        """RGB pixels 0..255 (b, 3, 112, 112), of any type, to embeddings (b, embedding_dim)."""
        if torch.compiler.is_compiling():  # a compiler plans the memory itself
            return super().forward(pixels)
        with shared_workspace():
            return super().forward(pixels)

    def normalise(self, pixels: Tensor, dtype: torch.dtype) -> Tensor:
        """Pixels 0..255 to numbers around 0, by the family's scale."""
        return normalise(pixels, dtype, self.pixel_scale)

    def apply_layers(self, names: Iterable[str], x: Tensor) -> Tensor:
        """Apply the layers of these names in order."""
        return in_sequence(map(self.get_submodule, names), x)
