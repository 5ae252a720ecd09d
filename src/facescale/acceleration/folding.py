"""A trained backbone made ready to embed: BatchNorm folded into its neighbours, weights laid out.

In eval mode BatchNorm is `scale * x + shift` per channel, which a convolution or linear layer next
to it can do itself. One kind stays: IResNet's first BatchNorm of a unit stands before a convolution
that pads with zeros, and those are zeros behind the BatchNorm. Padding with `-shift / scale` in
front of it would be exact too, but copies the image once, which is what the BatchNorm costs.

Only layers of exactly torch's classes change: what a subclass or a hook computes is not known here.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import TypeGuard

import torch
from torch import Tensor, nn

from facescale.acceleration.accelerate import PIXELS, swap_
from facescale.acceleration.chain import is_alone
from facescale.backbones import Backbone, build
from facescale.backbones.convolutional import ConvolutionalBackbone
from facescale.backbones.iresnet import Unit


def inference_copy(backbone: Backbone) -> Backbone:
    """A copy of `backbone` that embeds as fast as we know how where `backbone` lies, in eval mode.

    It answers as `backbone` does in eval mode but for rounding, gives no gradients, and follows no
    later change of `backbone`. Move `backbone`, not the copy, to another device, and make the copy
    inside the autocast in which it is to run, if any.
    """
    copy = fold(backbone)
    copy.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    weight = next(copy.parameters())
    if (
        weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and torch.backends.mkldnn.is_available()
        and not torch.is_autocast_enabled("cpu")
    ):
        swap_(copy, PIXELS)
        _pack_(copy)
    return copy


def fold(backbone: Backbone) -> Backbone:
    """A copy of `backbone` in eval mode without dropout and without the BatchNorms that fold."""
    with torch.device("meta"):  # rebuilt, since what SyncBatchNorm holds cannot be copied
        copy = build(**backbone.spec)
    tensors = {name: value.detach().clone() for name, value in backbone.state_dict().items()}
    copy.load_state_dict(tensors, assign=True)
    _copy_unsaved_(copy, backbone)
    copy.requires_grad_(False).eval()
    for parent, names in _rows(copy):
        kept = [name for name in names if not isinstance(parent.get_submodule(name), nn.Dropout)]
        for name in set(names) - set(kept):
            setattr(parent, name, nn.Identity())
        _fold_behind_(parent, kept)
        _fold_ahead_(parent, kept)
    return copy


def _copy_unsaved_(copy: nn.Module, backbone: nn.Module) -> None:
    """Give `copy` the buffers that no state dict has."""
    for own, module in zip(copy.modules(), backbone.modules(), strict=True):
        for name in module._non_persistent_buffers_set:
            value = module._buffers[name]
            own._buffers[name] = None if value is None else value.detach().clone()


def _rows(network: nn.Module) -> Iterator[tuple[nn.Module, list[str]]]:
    """Names of layers of which each sees nothing but the output of the one before, and whose."""
    for module in network.modules():
        if isinstance(module, ConvolutionalBackbone):
            yield module, [*module.trunk_names, *module.neck_names]
        elif isinstance(module, Unit):
            yield module, ["bn1", "conv1", "bn2", "prelu", "conv2", "bn3"]
        elif type(module) is nn.Sequential:
            yield module, [name for name, _ in module.named_children()]


def _is_layer(module: nn.Module) -> TypeGuard[nn.Conv2d | nn.Linear]:
    return type(module) in (nn.Conv2d, nn.Linear) and is_alone(module)


def _is_norm(module: nn.Module) -> TypeGuard[nn.BatchNorm2d]:
    """Whether this is a BatchNorm with weights and running statistics."""
    known = type(module) in (nn.BatchNorm1d, nn.BatchNorm2d) and is_alone(module)
    return known and bool(module.affine and module.track_running_stats)


def _fold_behind_(parent: nn.Module, names: list[str]) -> None:
    """Each BatchNorm that follows a convolution or linear layer goes into its rows."""
    for before, name in pairwise(names):
        layer, norm = parent.get_submodule(before), parent.get_submodule(name)
        # behind a linear layer over tokens, the channels are not that layer's outputs
        if _is_layer(layer) and _is_norm(norm) and norm.num_features == len(layer.weight):
            scale, shift = _scale_and_shift(norm)
            rows = scale.view(-1, *(1,) * (layer.weight.ndim - 1))
            if layer.bias is not None:
                shift += scale * layer.bias.double()
            _set_(layer, layer.weight.double() * rows, shift)
            setattr(parent, name, nn.Identity())


def _fold_ahead_(parent: nn.Module, names: list[str]) -> None:
    """Each BatchNorm whose image is flattened for a linear layer goes into its columns."""
    for name, between, last in zip(names, names[1:], names[2:], strict=False):
        norm, flatten, layer = map(parent.get_submodule, (name, between, last))
        flattens = isinstance(flatten, nn.Flatten) and flatten.start_dim == 1
        if _is_norm(norm) and flattens and _is_layer(layer) and isinstance(layer, nn.Linear):
            places = layer.in_features // norm.num_features
            scale, shift = (x.repeat_interleave(places) for x in _scale_and_shift(norm))
            bias = layer.weight.double() @ shift
            if layer.bias is not None:
                bias += layer.bias.double()
            _set_(layer, layer.weight.double() * scale, bias)
            setattr(parent, name, nn.Identity())


def _scale_and_shift(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """BatchNorm in eval mode as scale * x + shift, (channels,) each, in float64."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    return scale, norm.bias.double() - norm.running_mean.double() * scale


def _set_(layer: nn.Conv2d | nn.Linear, weight: Tensor, bias: Tensor) -> None:
    dtype = layer.weight.dtype
    layer.weight = nn.Parameter(weight.to(dtype), requires_grad=False)
    layer.bias = nn.Parameter(bias.to(dtype), requires_grad=False)


def _pack_(module: nn.Module) -> None:
    """Replace each convolution inside `module` by one whose weights are laid out once."""
    for name, child in module.named_children():
        if _is_layer(child) and isinstance(child, nn.Conv2d) and _pads_by_number(child):
            setattr(module, name, _PackedConv2d(child))
        else:
            _pack_(child)


def _pads_by_number(conv: nn.Conv2d) -> bool:
    return conv.padding_mode == "zeros" and not isinstance(conv.padding, str)


class _PackedConv2d(nn.Module):
    """A float32 convolution on the CPU whose weights are not laid out for oneDNN in every call."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.bias = conv.bias
        self._weight = conv.weight.detach()
        self._shape = (conv.padding, conv.stride, conv.dilation, conv.groups)
        self._is_packed = False

    def forward(self, x: Tensor) -> Tensor:
        """(b, in_channels, h, w) to (b, channels, h', w'), channels last."""
        if not self._is_packed:  # the best layout depends on the size of the image
            self._weight = torch.ops.mkldnn._reorder_convolution_weight(
                self._weight, *self._shape, x.shape
            )
            self._is_packed = True
        output: Tensor = torch.ops.mkldnn._convolution_pointwise(
            x.contiguous(memory_format=torch.channels_last),
            self._weight,
            self.bias,
            *self._shape,
            "none",
            [],
            "",
        )
        return output
