"""Chains of convolution, BatchNorm and PReLU in training, each pass of which is a native operator.

Half of MobileFaceNet's step by its single layers is memory traffic. Between two norms of a chain
only the convolution's output is stored: the next operator normalises while it reads, and takes the
statistics of its own output while that is in the cache. The backward pass does the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from facescale.acceleration.conv import is_conv, is_grouped, is_pointwise
from facescale.acceleration.prelu import PReLU
from facescale.kernels.cpu import norm as norms
from facescale.kernels.cpu.between import conv_between, conv_between_backward
from facescale.kernels.cpu.operators import channels_last, takes


@dataclass(frozen=True)
class Link:
    """A BatchNorm with the convolution in front of it and the PReLU behind it, if there are any."""

    conv: nn.Conv2d | None
    norm: nn.BatchNorm2d
    prelu: nn.PReLU | None

    @property
    def parameters(self) -> tuple[Tensor | None, ...]:
        """Weights of convolution, norm, its bias, and PReLU's slope."""
        weight = None if self.conv is None else self.conv.weight
        slope = None if self.prelu is None else self.prelu.weight
        return weight, self.norm.weight, self.norm.bias, slope

    @property
    def stride(self) -> int:
        """Of the convolution."""
        return 1 if self.conv is None else int(self.conv.stride[0])

    def __len__(self) -> int:
        """The number of layers."""
        return 1 + (self.conv is not None) + (self.prelu is not None)

    def size_of(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Shape of the output (b, c, h, w), from that of the input."""
        images, _, height, width = shape
        stride = self.stride
        return images, self.norm.num_features, -(-height // stride), -(-width // stride)

    def takes(self, shape: Sequence[int]) -> bool:
        """Whether the operators compute this link on an image of `shape`."""
        images, channels, height, width = self.size_of(shape)
        inputs = channels if self.conv is None else self.conv.in_channels
        # torch raises an error for a norm of one number a channel
        if shape[1] != inputs or images * height * width < 2:
            return False
        return takes(*self.parameters, self.norm.running_mean, self.norm.running_var)


def chain_of(layers: Sequence[nn.Module], x: Tensor) -> list[Link]:
    """The longest chain at the start of `layers` that the operators can compute on `x`."""
    links: list[Link] = []
    is_image = isinstance(x, Tensor) and x.ndim == 4  # a Sequential may pass on other things
    if not is_image or torch.is_autocast_enabled("cpu") or not takes(x):
        return links
    shape: tuple[int, ...] = tuple(x.shape)
    place = 0
    while (link := _link(layers[place:], may_lack_conv=not links)) and link.takes(shape):
        shape = link.size_of(shape)
        links.append(link)
        place += len(link)
    return links


def _link(layers: Sequence[nn.Module], may_lack_conv: bool) -> Link | None:
    """The link at the start of `layers`, if there is one."""
    conv = layers[0] if layers and _is_native(layers[0]) else None
    if conv is None and not may_lack_conv:
        return None
    norm, prelu = [*layers[0 if conv is None else 1 :], None, None][:2]
    if type(norm) is not nn.BatchNorm2d or not _is_usual(norm):
        return None
    if conv is not None and conv.out_channels != norm.num_features:
        return None
    has_prelu = (
        isinstance(prelu, nn.PReLU)
        and type(prelu) in (nn.PReLU, PReLU)  # what a subclass computes is not known
        and prelu.num_parameters == norm.num_features
        and is_alone(prelu)
    )
    return Link(conv, norm, prelu if has_prelu else None)  # type: ignore[arg-type]


def _is_native(layer: nn.Module) -> bool:
    return is_conv(layer) and (is_pointwise(layer) or is_grouped(layer)) and is_alone(layer)


def is_alone(module: nn.Module) -> bool:
    """Whether no hook listens to this module's calls."""
    return not (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def _is_usual(norm: nn.BatchNorm2d) -> bool:
    usual = norm.affine and norm.track_running_stats and norm.momentum is not None
    return norm.training and usual and is_alone(norm)


def can_add(links: Sequence[Link], x: Tensor, shortcut: Tensor | None) -> bool:
    """Whether the chain can add `shortcut` to its output for `x`."""
    if shortcut is None:
        return True
    shape: tuple[int, ...] = tuple(x.shape)
    for link in links:
        shape = link.size_of(shape)
    return tuple(shortcut.shape) == shape and takes(shortcut)


def run(links: Sequence[Link], x: Tensor, shortcut: Tensor | None) -> Tensor:
    """The output of the chain for `x` (b, c, h, w), plus `shortcut` if there is one."""
    parameters = [parameter for link in links for parameter in link.parameters]
    # Of a sum with the input, the gradients meet inside the first convolution.
    meets = shortcut is x and links[0].conv is not None
    settings = tuple((link.stride, link.norm.eps) for link in links)
    output, *statistics = _Chain.apply(  # type: ignore[no-untyped-call]
        settings, meets, x, None if meets else shortcut, *parameters
    )
    for link, seen in zip(links, statistics, strict=True):
        _learn_(link.norm, seen)
    return output  # type: ignore[no-any-return]


@torch.no_grad()
def _learn_(norm: nn.BatchNorm2d, statistics: Tensor) -> None:
    """Move the running statistics towards those of a batch (3, c)."""
    assert norm.num_batches_tracked is not None
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.momentum is not None
    mean, _, variance = statistics.unbind()
    norm.num_batches_tracked += 1
    norm.running_mean.lerp_(mean, norm.momentum)
    norm.running_var.lerp_(variance, norm.momentum)


class _Chain(torch.autograd.Function):
    """All links as one function: autograd does not see the images between them."""

    @staticmethod
    def forward(
        ctx: Any,
        settings: tuple[tuple[int, float], ...],
        meets: bool,
        x: Tensor,
        shortcut: Tensor | None,
        *parameters: Tensor | None,
    ) -> tuple[Tensor, ...]:
        images, statistics = [x], []
        norm: list[Tensor] = []
        for i, (stride, eps) in enumerate(settings):
            image, weight = images[-1], parameters[4 * i]
            if weight is None:
                made, seen = image, norms.statistics(image, eps)
            else:
                made, seen = conv_between(image, weight, stride, norm, eps)
            norm = _norm(parameters, i, seen)
            images.append(made)
            statistics.append(seen)
        output = norms.apply(images[-1], norm, x if meets else shortcut)
        ctx.save_for_backward(*images, *statistics, *parameters)
        ctx.settings, ctx.meets, ctx.has_shortcut = settings, meets, shortcut is not None
        ctx.mark_non_differentiable(*statistics)
        ctx.set_materialize_grads(False)
        return output, *statistics

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: None) -> tuple[Tensor | None, ...]:
        saved, count = ctx.saved_tensors, len(ctx.settings)
        images, statistics = saved[: count + 1], saved[count + 1 : 2 * count + 1]
        parameters = saved[2 * count + 1 :]
        behind = [_norm(parameters, i, statistics[i]) for i in range(count)]
        gradient = channels_last(gradient)
        totals = norms.sums(images[-1], behind[-1], gradient)
        to_image = gradient
        to_parameters: list[Tensor | None] = []
        for i in reversed(range(count)):
            weight, to_weight, own = parameters[4 * i], None, totals
            if weight is None:
                to_image = norms.derivative(images[i], behind[i], own, to_image)
            else:
                before = behind[i - 1] if i else []
                meeting = gradient if ctx.meets and not i else None
                to_image, to_weight, totals = conv_between_backward(
                    to_image, images[i], weight, ctx.settings[i][0], before,
                    images[i + 1], behind[i], own, meeting,
                )  # fmt: skip
            to_parameters[:0] = to_weight, *norms.parameter_gradients(own, behind[i])
        known = (
            g if p is not None else None for g, p in zip(to_parameters, parameters, strict=True)
        )
        return None, None, to_image, gradient if ctx.has_shortcut else None, *known


def _norm(parameters: Sequence[Any], i: int, statistics: Tensor) -> list[Tensor]:
    """The norm of link `i` as the operators take it."""
    weight, bias, slope = parameters[4 * i + 1 : 4 * i + 4]
    return [weight, bias, statistics] if slope is None else [weight, bias, statistics, slope]
