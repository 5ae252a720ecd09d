"""Chains of convolution, BatchNorm and PReLU in training, each pass of which is a native kernel.

Half of MobileFaceNet's step by its single layers is memory traffic. Between two norms of a chain
nothing is stored but what a convolution has put out: the next one normalises while it reads, and
takes the statistics of its own output while that is in the cache. So does the backward pass.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from facescale.acceleration.conv import Conv2d
from facescale.kernels.cpu.depthwise import Grouped
from facescale.kernels.cpu.dispatch import address, kernels
from facescale.kernels.cpu.norm import (
    BatchNorm2d,
    Norm,
    backward_norm,
    forward_norm,
    gradients,
)
from facescale.kernels.cpu.pointwise import Pointwise


@dataclass(frozen=True)
class Link:
    """A BatchNorm with the convolution in front of it and the PReLU behind it, if there are any."""

    conv: Conv2d | None
    norm: BatchNorm2d
    prelu: nn.PReLU | None

    @property
    def parameters(self) -> tuple[Tensor | None, ...]:
        """Weights of convolution, norm, its bias, and PReLU's slope."""
        weight = None if self.conv is None else self.conv.weight
        slope = None if self.prelu is None else self.prelu.weight
        return weight, self.norm.weight, self.norm.bias, slope

    def __len__(self) -> int:
        """How many layers these are."""
        return 1 + (self.conv is not None) + (self.prelu is not None)

    def size_of(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Of the output (b, c, h, w), from that of the input."""
        images, _, height, width = shape
        stride = 1 if self.conv is None else self.conv.stride[0]
        return images, self.norm.num_features, -(-height // stride), -(-width // stride)


def chain_of(layers: Sequence[nn.Module], x: Tensor) -> list[Link]:
    """The longest chain that begins `layers` and that the kernels can do on `x`; may be empty."""
    links: list[Link] = []
    if x.ndim != 4 or torch.compiler.is_compiling():
        return links
    shape: tuple[int, ...] = tuple(x.shape)
    place = 0
    while link := _link(layers[place:], may_lack_conv=not links):
        shape = link.size_of(shape)
        # of one number a channel torch complains
        if shape[0] * shape[2] * shape[3] < 2 or not _is_known(link, x):
            break
        links.append(link)
        place += len(link)
    return links


def _link(layers: Sequence[nn.Module], may_lack_conv: bool) -> Link | None:
    """The link that begins `layers`, if one does."""
    following = iter(layers)
    layer = next(following, None)
    conv = None
    if type(layer) is Conv2d and is_alone(layer) and _is_native(layer):
        conv, layer = layer, next(following, None)
    elif not may_lack_conv:
        return None
    if type(layer) is not BatchNorm2d or not _is_usual(layer):
        return None
    prelu = next(following, None)
    takes_along = isinstance(prelu, nn.PReLU) and is_alone(prelu)
    return Link(conv, layer, prelu if takes_along else None)  # type: ignore[arg-type]


def _is_native(conv: Conv2d) -> bool:
    return Pointwise.serves(conv) or Grouped.serves(conv)


def is_alone(module: nn.Module) -> bool:
    """Whether nobody listens to this module's calls."""
    return not (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def _is_usual(norm: BatchNorm2d) -> bool:
    usual = norm.affine and norm.track_running_stats and norm.momentum is not None
    return norm.training and usual and is_alone(norm)


def _is_known(link: Link, x: Tensor) -> bool:
    buffers = link.norm.running_mean, link.norm.running_var
    return kernels("norm", x, *link.parameters, *buffers) is not None


def takes(links: Sequence[Link], x: Tensor, shortcut: Tensor | None) -> bool:
    """Whether the chain can add `shortcut` to what it makes of `x`."""
    if shortcut is None:
        return True
    shape: tuple[int, ...] = tuple(x.shape)
    for link in links:
        shape = link.size_of(shape)
    return tuple(shortcut.shape) == shape and kernels("norm", shortcut) is not None


def run(links: Sequence[Link], x: Tensor, shortcut: Tensor | None) -> Tensor:
    """What the chain makes of `x` (b, c, h, w), plus `shortcut` if there is one."""
    parameters = [parameter for link in links for parameter in link.parameters]
    for link in links:
        assert link.norm.num_batches_tracked is not None
        link.norm.num_batches_tracked += 1
    # Of a sum with what came in, the gradients meet inside the first convolution.
    meets = shortcut is x and links[0].conv is not None
    return _Chain.apply(links, meets, x, None if meets else shortcut, *parameters)  # type: ignore[no-any-return,no-untyped-call]


class _Chain(torch.autograd.Function):
    """All links in one: between them are images before their norms, which autograd never sees."""

    @staticmethod
    def forward(
        ctx: Any,
        links: Sequence[Link],
        meets: bool,
        x: Tensor,
        shortcut: Tensor | None,
        *parameters: Tensor | None,
    ) -> Tensor:
        native = kernels("norm", x)
        images, statistics = [x], []
        norms: list[Norm] = []
        for link in links:
            image, conv = images[-1], link.conv
            made = image if conv is None else _empty(link.size_of(image.shape))
            statistics.append(torch.empty(2, link.norm.num_features))
            norms.append(forward_norm(link.norm, link.prelu, made, statistics[-1]))
            if conv is None:
                native.norm_statistics(ctypes.byref(norms[-1]), address(made))
            else:
                before = norms[-2] if len(norms) > 1 else None
                _product(conv, image, conv.weight).forward(before, norms[-1], made)
            images.append(made)
        output = torch.empty_like(made)
        added = address(x if meets else shortcut)
        native.norm_apply(ctypes.byref(norms[-1]), address(made), added, address(output))
        ctx.save_for_backward(*images, *statistics, *parameters)
        ctx.native, ctx.links, ctx.meets = native, links, meets
        ctx.has_shortcut = shortcut is not None
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        saved, count = ctx.saved_tensors, len(ctx.links)
        images, statistics = saved[: count + 1], saved[count + 1 : 2 * count + 1]
        parameters = saved[2 * count + 1 :]
        totals = [torch.empty(3, known.shape[1], dtype=torch.float64) for known in statistics]
        norms = [
            backward_norm(
                images[i + 1], parameters[4 * i + 1 : 4 * i + 4], statistics[i], totals[i]
            )
            for i in range(count)
        ]
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        ctx.native.norm_sums(ctypes.byref(norms[-1]), *map(address, (images[-1], gradient)))
        to_image = gradient
        to_parameters: list[Tensor | None] = []
        for i in reversed(range(count)):
            upstream, to_image = to_image, torch.empty_like(images[i])
            weight, to_weight = parameters[4 * i], None
            if weight is None:
                pointers = map(address, (images[i], upstream, to_image))
                ctx.native.norm_derivative(ctypes.byref(norms[i]), *pointers)
            else:
                to_weight = torch.empty_like(weight)
                before = norms[i - 1] if i else None
                meeting = gradient if ctx.meets and not i else None
                _product(ctx.links[i].conv, images[i], weight).backward(
                    before, norms[i], images[i + 1], upstream, meeting, to_image, to_weight
                )
            to_parameters[:0] = to_weight, *gradients(totals[i], statistics[i])
        known = (
            g if p is not None else None for g, p in zip(to_parameters, parameters, strict=True)
        )
        return None, None, to_image, gradient if ctx.has_shortcut else None, *known


def _product(conv: Conv2d, x: Tensor, weight: Tensor) -> Pointwise | Grouped:
    if Pointwise.serves(conv):
        return Pointwise(x, weight)
    return Grouped(x, weight, conv.stride[0])


def _empty(shape: Sequence[int]) -> Tensor:
    return torch.empty(tuple(shape), memory_format=torch.channels_last)
