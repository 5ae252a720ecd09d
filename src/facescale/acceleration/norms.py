"""BatchNorm with the PReLU behind it and the sum with a shortcut in one operator, on CUDA."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from facescale.acceleration.chain import is_alone
from facescale.backbones.iresnet import Unit
from facescale.backbones.layers import Layers
from facescale.kernels.cuda import norm_kernels_serve


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
    if type(norm) is not nn.BatchNorm2d or not (norm.training and norm.affine and is_alone(norm)):
        return False
    if not norm.track_running_stats or norm.momentum is None or norm.weight.dtype != torch.float32:
        return False
    if prelu is not None and not (type(prelu) is nn.PReLU and is_alone(prelu)):
        return False
    # A compiler fuses the operations of torch by itself.
    return not torch.compiler.is_compiling() and norm_kernels_serve(x)


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
        from facescale.kernels.cuda.norm import Parameters, batch_norm  # not before a card is used

        y, mean, inverse = batch_norm(
            x, Parameters(weight, bias, slope), running_mean, running_variance,
            momentum=momentum, eps=eps, shortcut=shortcut,
        )  # fmt: skip
        ctx.save_for_backward(x, weight, bias, slope, mean, inverse)
        ctx.adds = shortcut is not None
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        from facescale.kernels.cuda.norm import Parameters, batch_norm_backward

        x, weight, bias, slope, mean, inverse = ctx.saved_tensors
        gradients = batch_norm_backward(gradient, x, Parameters(weight, bias, slope), mean, inverse)
        return *gradients, gradient if ctx.adds else None, None, None, None, None


class NormedUnit(Unit):
    """IResNet's unit with its norms in kernels."""

    def forward(self, x: Tensor) -> Tensor:
        """(b, in_channels, h, w) to (b, channels, h / stride, w / stride)."""
        y = self.conv1(norm_act(self.bn1, x))
        y = self.conv2(norm_act(self.bn2, y, self.prelu))
        shortcut: Tensor = self.downsample(x)
        return norm_act(self.bn3, y, shortcut=shortcut)


class NormedLayers(Layers):
    """Convolution, BatchNorm and perhaps PReLU, the last two in one kernel."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layers in order."""
        conv, *rest = self.layers
        if not is_alone(self.layers) or not 1 <= len(rest) <= 2:
            return super().forward(x)
        return norm_act(rest[0], conv(x), rest[1] if len(rest) == 2 else None)
