"""The door between networks and kernels: layers swapped for faster ones of the same numbers."""

import torch
from torch import nn

from facescale.acceleration.conv import Conv2d
from facescale.acceleration.norms import NormedBackbone, NormedLayers, NormedUnit
from facescale.acceleration.prelu import PReLU
from facescale.acceleration.sequence import (
    ChainedBackbone,
    ChainedBottleneck,
    ChainedLayers,
    ChainedSequential,
    ChainedUnit,
)
from facescale.acceleration.stem import FEW
from facescale.acceleration.stem import Conv2d as StemConv2d
from facescale.backbones.convolutional import ConvolutionalBackbone
from facescale.backbones.iresnet import Unit
from facescale.backbones.layers import Layers
from facescale.backbones.mobilefacenet import Bottleneck
from facescale.kernels.cpu.build import missing
from facescale.kernels.cuda import available

Kinds = dict[type[nn.Module], type[nn.Module]]

PIXELS: Kinds = {ConvolutionalBackbone: ChainedBackbone}
CPU: Kinds = {nn.PReLU: PReLU}
CPU_FLOAT32: Kinds = {
    nn.Conv2d: Conv2d,
    nn.Sequential: ChainedSequential,
    Layers: ChainedLayers,
    Bottleneck: ChainedBottleneck,
    Unit: ChainedUnit,
    **PIXELS,
}
CUDA: Kinds = {
    Layers: NormedLayers,
    Unit: NormedUnit,
    ConvolutionalBackbone: NormedBackbone,
}


def accelerate_(network: nn.Module, device: torch.device, precision: torch.dtype) -> None:
    """Swap the layers of `network` that have a faster form on `device` in `precision`.

    Weights, their names, and results but for rounding stay. Each layer still decides in every call
    whether its operators compute what it is given, and otherwise does what torch does: so hooks,
    eval mode, autocast and replaced layers keep their meaning. Without a compiler only PReLU, which
    needs none, is swapped on a CPU; on a CUDA device nothing is swapped without Triton.
    """
    if device.type == "cuda" and available():
        swap_(network, CUDA)
        for conv in [m for m in network.modules() if type(m) is nn.Conv2d]:
            if conv.in_channels <= FEW:
                swap_(conv, {nn.Conv2d: StemConv2d})
    if device.type != "cpu":
        return
    swap_(network, CPU)
    if precision == torch.float32 and missing() is None:
        swap_(network, CPU_FLOAT32)


def swap_(network: nn.Module, kinds: Kinds) -> None:
    """Give each module of exactly such a type the class that stands for it in `kinds`.

    That one derives from it and adds no state, so the class is all that differs.
    """
    for module in network.modules():
        module.__class__ = kinds.get(type(module), type(module))
