"""BatchNorm with the PReLU behind it and the sum with a shortcut in one operator, on CUDA."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from facescale.acceleration.chain import is_alone
from facescale.backbones.convolutional import ConvolutionalBackbone
from facescale.backbones.iresnet import Unit
from facescale.backbones.layers import Layers
from facescale.kernels.cuda import norm_kernels_serve

NORMS: dict[type[nn.Module], int] = {nn.BatchNorm2d: 4, nn.BatchNorm1d: 2}
"""Dimensions of the input that the kernels know of each."""


def norm_act(
    norm: nn.Module, x: Tensor, prelu: nn.Module | None = None, shortcut: Tensor | None = None
) -> Tensor:
    """prelu(norm(x)) + shortcut, (b, c, h, w): by kernels where they can, else by torch."""
    if not _serves(norm, prelu, x):
        y: Tensor = norm(x)
        y = y if prelu is None else prelu(y)
        return y if shortcut is None else y + shortcut
    together = shortcut if shortcut is not None and _alike(shortcut, x) else None
    slope = None if prelu is None else prelu.weight
    norm.num_batches_tracked.add_(1)  # type: ignore[operator]
    y = _NormAct.apply(  # type: ignore[no-untyped-call]
        x, norm.weight, norm.bias, slope, together, norm.running_mean, norm.running_var,
        norm.momentum, norm.eps,
    )  # fmt: skip
    return y if shortcut is None or together is not None else y + shortcut


def _serves(norm: nn.Module, prelu: nn.Module | None, x: Tensor) -> bool:
    """Whether these are the layers and the image that the kernels know, in training."""
    if type(norm) not in NORMS or not (norm.training and norm.affine and is_alone(norm)):
        return False
    if not norm.track_running_stats or norm.momentum is None or norm.weight.dtype != torch.float32:
        return False
    if prelu is not None and not (type(prelu) is nn.PReLU and is_alone(prelu)):
        return False
    # A compiler fuses the operations of torch by itself.
    known = not torch.compiler.is_compiling() and x.ndim == NORMS[type(norm)]
    return known and norm_kernels_serve(x)


def _alike(one: Tensor, other: Tensor) -> bool:
    layout = one.is_contiguous(memory_format=torch.channels_last)
    return layout and one.shape == other.shape and one.dtype == other.dtype


class _NormAct(torch.autograd.Function):
    """`kernels.cuda.norm.batch_norm` and its gradients."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        slope: Tensor | None,
        shortcut: Tensor | None,
        running_mean: Tensor,
        running_variance: Tensor,
        momentum: float,
        eps: float,
    ) -> Tensor:
        from facescale.kernels.cuda.norm_operators import batch_norm  # not before a GPU is used

        y, mean, inverse = batch_norm(
            x, weight, bias, slope, shortcut, running_mean, running_variance, momentum, eps
        )
        ctx.save_for_backward(x, weight, bias, slope, mean, inverse)
        ctx.adds = shortcut is not None
        return y  # type: ignore[no-any-return]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        from facescale.kernels.cuda.norm_operators import batch_norm_backward
        from facescale.kernels.cuda.norm_parameters import of_parameters

        x, weight, bias, slope, mean, inverse = ctx.saved_tensors
        to_x, totals = batch_norm_backward(gradient, x, weight, bias, slope, mean, inverse)
        to_shortcut = gradient if ctx.adds else None
        return to_x, *of_parameters(totals, slope), to_shortcut, None, None, None, None


def in_norms(layers: Iterable[nn.Module], x: Tensor) -> Tensor:
    """Apply `layers` in order, each BatchNorm together with a PReLU that follows it."""
    remaining = list(layers)
    while remaining:
        layer = remaining.pop(0)
        if type(layer) in NORMS:
            has_prelu = remaining and type(remaining[0]) is nn.PReLU
            x = norm_act(layer, x, remaining.pop(0) if has_prelu else None)
        else:
            x = layer(x)
    return x


class NormedUnit(Unit):
    """IResNet's unit with its norms in kernels."""

    def forward(self, x: Tensor) -> Tensor:
        """(b, in_channels, h, w) to (b, channels, h / stride, w / stride)."""
        y = self.conv1(norm_act(self.bn1, x))
        y = self.conv2(norm_act(self.bn2, y, self.prelu))
        plain = type(self.downsample) is nn.Sequential and is_alone(self.downsample)
        shortcut = in_norms(self.downsample, x) if plain else self.downsample(x)  # type: ignore[arg-type]
        return norm_act(self.bn3, y, shortcut=shortcut)


class NormedLayers(Layers):
    """Layers in sequence, a BatchNorm and its PReLU in one kernel."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layers in order."""
        return in_norms(self.layers, x) if is_alone(self.layers) else super().forward(x)


class NormedBackbone(ConvolutionalBackbone):
    """A trunk and a neck with the norms of stem and neck in kernels."""

    def apply_layers(self, names: Iterable[str], x: Tensor) -> Tensor:
        """Apply the layers of these names in order."""
        return in_norms(map(self.get_submodule, names), x)
