"""BatchNorm over the batch of all ranks, on any device.

Plain BatchNorm normalises with the statistics of a rank's own samples, so the result depends on how
the global batch is divided among the ranks. `SyncBatchNorm` uses those of the global batch.
"""

from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.nn.modules.batchnorm import _BatchNorm

from facescale.distributed import Group


def synchronise_norms_(module: nn.Module, world: Group) -> None:
    """Replace each BatchNorm inside `module` by a `SyncBatchNorm` over the same tensors.

    Raises:
        ValueError: A layer has no running statistics, or averages them over all steps.
    """
    for name, child in module.named_children():
        if isinstance(child, _BatchNorm):
            if child.momentum is None or not child.track_running_stats:
                raise ValueError(
                    f"{name}: {child} has no running statistics with a momentum, which "
                    "train.sync_batchnorm needs; give it both, or set train.sync_batchnorm false"
                )
            setattr(module, name, SyncBatchNorm.over(child, world))
        else:
            synchronise_norms_(child, world)


class SyncBatchNorm(_BatchNorm):
    """BatchNorm with the mean and variance of all ranks' samples, for inputs (b, channels, ...).

    Two sums over the ranks a step: statistics in the forward pass, their gradients in the backward
    pass. Ranks may bring different b, and b may be 0. torch's own runs on CUDA alone.
    """

    world: Group

    @classmethod
    def over(cls, norm: _BatchNorm, world: Group) -> Self:
        """With the parameters, buffers and settings of `norm`."""
        assert norm.momentum is not None
        assert norm.track_running_stats
        synced = cls(norm.num_features, norm.eps, norm.momentum, norm.affine, device="meta")
        synced.world = world
        synced._parameters, synced._buffers = norm._parameters, norm._buffers
        return synced.train(norm.training)

    def _check_input_dim(self, input: Tensor) -> None:
        """Any number of dimensions will do."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise, in training with the statistics of the global batch; shape and type stay."""
        if not self.training:
            return super().forward(input)
        assert self.num_batches_tracked is not None
        assert self.running_mean is not None
        assert self.running_var is not None
        weight = self.weight if self.affine else torch.ones_like(self.running_var)
        bias = self.bias if self.affine else torch.zeros_like(self.running_mean)
        output, mean, variance, count = _Normalise.apply(  # type: ignore[no-untyped-call]
            input, weight, bias, self.eps, self.world
        )
        self.num_batches_tracked += 1
        unbiased = variance * (count / (count - 1).clamp_min(1))
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)  # type: ignore[arg-type]
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), self.momentum)  # type: ignore[arg-type]
        return output  # type: ignore[no-any-return]


class _Normalise(torch.autograd.Function):
    """(x - mean) / sqrt(variance + eps) * weight + bias over a batch that lies on several ranks."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, x: Tensor, weight: Tensor, bias: Tensor, eps: float, world: Group
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The output like x; mean, variance (channels,) and samples of a channel ()."""
        mean, variance, count = _statistics(x, world)
        inverse = (variance + eps).rsqrt()
        scale = weight * inverse
        output = _per_channel(x, scale, bias - mean * scale)
        ctx.save_for_backward(x, weight, mean, inverse, count)
        ctx.world = world  # type: ignore[attr-defined]
        ctx.mark_non_differentiable(mean, variance, count)
        return output, mean, variance, count

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, inverse, count = ctx.saved_tensors
        scale = weight * inverse
        axes = [0, *range(2, x.ndim)]
        to_bias = gradient.sum(axes, dtype=mean.dtype)
        centred = _per_channel(x, torch.ones_like(mean), -mean, round_to_x=False)
        to_weight = (centred.mul_(gradient)).sum(axes, dtype=mean.dtype) * inverse
        shift, slope = ctx.world.all_reduce_(torch.stack([to_bias, to_weight])) / count
        # scale * (gradient - shift - slope * normalised x), as one multiple of x and one constant
        slope = -scale * slope * inverse
        to_x = _per_channel(gradient, scale, -scale * shift - slope * mean)
        to_x += _per_channel(x, slope, torch.zeros_like(slope))
        return to_x, to_weight.to(weight.dtype), to_bias.to(weight.dtype), None, None


def _statistics(x: Tensor, world: Group) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and variance of each channel and the samples of one, over all ranks.

    The parts are joined by their distances from the common mean, so a large mean costs no digits.
    Source: Chan et al., The American Statistician 37, 1983.
    """
    axes = [0, *range(2, x.ndim)]
    channels = x.shape[1]
    part = torch.zeros(2 * channels + 1, dtype=_type_of_sums(x), device=x.device)
    if x.numel():
        variance, mean = torch.var_mean(
            x.float() if x.dtype.itemsize < 4 else x, axes, correction=0
        )
        part[-1] = x.numel() // channels
        part[:channels], part[channels:-1] = mean, variance
    parts = world.all_gather(part)
    counts = parts[:, -1:]
    shares = counts / counts.sum()
    means, variances = parts[:, :channels], parts[:, channels:-1]
    mean = (shares * means).sum(0)
    variance = (shares * (variances + (means - mean).square())).sum(0)
    return mean, variance, counts.sum()


def _type_of_sums(x: Tensor) -> torch.dtype:
    """float64 on a CPU. CUDA devices are slow at that: float32 there, if `x` is not float64."""
    if x.device.type == "cpu":
        return torch.float64
    return torch.promote_types(x.dtype, torch.float32)


def _per_channel(x: Tensor, scale: Tensor, shift: Tensor, *, round_to_x: bool = True) -> Tensor:
    """`x * scale + shift`, (channels,) of each; in float32 or better, rounded as x in the end."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    shape = (-1, *(1,) * (x.ndim - 2))
    scale, shift = scale.to(dtype).view(shape), shift.to(dtype).view(shape)
    moved = torch.addcmul(shift, x.to(dtype), scale)
    return moved.to(x.dtype) if round_to_x else moved
