"""Weights of AdaFace, CVLface and face.evoLVe: their IR networks as IResNets of this package.

| theirs | here |
|---|---|
| `MaxPool2d(1, 2)` as the shortcut where the channels stay | 1x1 convolution by the identity |
| no BatchNorm behind it; in face.evoLVe none before the PReLU | BatchNorm that does nothing |
| last BatchNorm without weights, except in face.evoLVe | gamma 1, beta 0 |
| BGR images in AdaFace | first convolution's channels reversed |

The order of the channels is not written in a file. Names below `net.` are CVLface's and a last
BatchNorm with weights is face.evoLVe's, which both take RGB; all others are AdaFace's.

The basic block is converted, with squeeze-and-excitation or without; not the bottlenecks of
AdaFace's IR-152 and 200.
"""

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from facescale.backbones.families import ARCFACE_TORCH

_MAX_CHANNELS = 4096  # a file says how large an identity becomes
_FIRST = "input_layer.0.weight"
_AFFINE = "output_layer.4.weight"
_ENDS = {
    "input_layer.0": "conv1",
    "input_layer.1": "bn1",
    "input_layer.2": "prelu",
    "output_layer.0": "bn2",
    "output_layer.3": "fc",
    "output_layer.4": "features",
}
_SHORTCUT = {"shortcut_layer.0": "downsample.0", "shortcut_layer.1": "downsample.1"}
_SQUEEZES = ("res_layer.5", "res_layer.se_block")
"""Where face.evoLVe and AdaFace have it."""
_UNIT = ("bn1", "conv1", "bn2", "prelu", "conv2", "bn3")
_UNIT_OF_EVOLVE = ("bn1", "conv1", "prelu", "conv2", "bn3")


def is_rgb(names: Mapping[str, Tensor]) -> bool:
    """Whether the network behind these names, prefixes included, takes RGB."""
    return any(name.endswith((f"net.{_FIRST}", _AFFINE)) for name in names)


def with_our_names(
    tensors: Mapping[str, Tensor], *, rgb: bool, weights: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """The tensors of an IR network under the names of an IResNet; others as they are.

    Args:
        tensors: By name, without prefixes. What an IResNet has not keeps its name.
        rgb: Whether the first convolution takes RGB, not BGR.
        weights: The network's weights, where `tensors` are momenta of some of them: no layer is
            added to those.
    """
    network = tensors if weights is None else weights
    if _FIRST not in network:
        return dict(tensors)
    layers = _ENDS | _unit_layers(network)
    ours = {}
    for name, value in tensors.items():
        layer, _, field = name.rpartition(".")
        swaps = name == _FIRST and not rgb and value.ndim == 4
        ours[f"{layers.get(layer, layer)}.{field}"] = value.flip(1) if swaps else value
    if weights is None:
        _add_missing_(ours, _names_of_units(tensors).values())
    return ours


def _names_of_units(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """`layer2.0` of `body.2`, in order: a stage begins where the number of channels changes."""
    found = {int(match[1]) for name in tensors if (match := re.match(r"body\.(\d{1,4})\.", name))}
    names, stage, unit, channels = {}, 0, 0, -1
    for number in sorted(found):
        conv = tensors.get(f"body.{number}.res_layer.1.weight")
        width = len(conv) if conv is not None and conv.ndim else channels
        stage, unit = (stage, unit + 1) if width == channels else (stage + 1, 0)
        channels = width
        names[f"body.{number}"] = f"layer{stage}.{unit}"
    return names


def _unit_layers(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Our name of each layer in the units, by theirs."""
    layers = {}
    for theirs, ours in _names_of_units(tensors).items():
        plain = f"{theirs}.res_layer.5.weight" in tensors
        for index, layer in enumerate(_UNIT if plain else _UNIT_OF_EVOLVE):
            layers[f"{theirs}.res_layer.{index}"] = f"{ours}.{layer}"
        for squeeze in _SQUEEZES:
            for layer in ("fc1", "fc2"):
                layers[f"{theirs}.{squeeze}.{layer}"] = f"{ours}.se.{layer}"
        for layer, name in _SHORTCUT.items():
            layers[f"{theirs}.{layer}"] = f"{ours}.{name}"
    return layers


def _add_missing_(ours: dict[str, Tensor], units: Iterable[str]) -> None:
    """Add the layers that do nothing, which their networks leave out."""
    for name in ("weight", "bias"):
        if (mean := ours.get("features.running_mean")) is not None:
            ours.setdefault(f"features.{name}", torch.full_like(mean, name == "weight"))
    for unit in units:
        slope = ours.get(f"{unit}.prelu.weight")
        if slope is None or slope.numel() > _MAX_CHANNELS:
            continue
        channels = slope.numel()
        if f"{unit}.bn2.weight" not in ours:
            ours |= _identity_norm(f"{unit}.bn2", channels)
        if unit.endswith(".0") and f"{unit}.downsample.0.weight" not in ours:
            ours[f"{unit}.downsample.0.weight"] = torch.eye(channels)[:, :, None, None]
            ours |= _identity_norm(f"{unit}.downsample.1", channels)


def _identity_norm(name: str, channels: int) -> dict[str, Tensor]:
    """A BatchNorm that leaves its input as it is in eval mode."""
    variance = 1.0 - ARCFACE_TORCH.iresnet.eps
    return {
        f"{name}.weight": torch.ones(channels),
        f"{name}.bias": torch.zeros(channels),
        f"{name}.running_mean": torch.zeros(channels),
        f"{name}.running_var": torch.full((channels,), variance),
        f"{name}.num_batches_tracked": torch.tensor(0),
    }
