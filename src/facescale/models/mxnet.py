"""Weights trained with MXNet: read a `.params` file without MXNet, and load it into a backbone.

The file is MXNet's dictionary of arrays (`src/ndarray/ndarray.cc`, `NDArray::Save`), little-endian:

    uint64 0x112, uint64 0
    uint64 number of arrays, then each array:
        uint32 0xF993FAC9, int32 storage (0: dense), uint32 number of dimensions, int64 dimensions,
        int32 device type, int32 device id, int32 type of the elements, the elements
    uint64 number of names, then each name: uint64 length, bytes

A name is `arg:` or, for running statistics, `aux:`, and then the parameter's name in the graph.
"""

import math
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from facescale.backbones.backbone import Backbone
from facescale.models.names import Shapes, differences, shapes_of

_FILE_MAGIC = 0x112
_ARRAY_MAGIC = 0xF993FAC9
_FIXED_GAMMA = "arg:fc1_gamma"
_ELEMENTS = {0: "<f4", 1: "<f8", 2: "<f2", 3: "u1", 4: "<i4", 5: "i1", 6: "<i8"}


def read_mxnet(path: str | Path) -> dict[str, NDArray[Any]]:
    """Read the arrays of an MXNet `.params` file by name, `arg:` or `aux:` included.

    Raises ValueError where the file is truncated, damaged or of another kind.
    """
    file = _File(Path(path))
    if file.numbers("QQ") != (_FILE_MAGIC, 0):
        raise file.error("not an MXNet parameter file")
    arrays = [_read_array(file) for _ in range(file.number("Q"))]
    names = [file.text(file.number("Q")) for _ in range(file.number("Q"))]
    if not len(set(names)) == len(names) == len(arrays):
        raise file.error(f"{len(arrays)} arrays, {len(names)} names, {len(set(names))} different")
    if file.remaining:
        raise file.error(f"{file.remaining} bytes too many")
    return dict(zip(names, arrays, strict=True))


def _read_array(file: "_File") -> NDArray[Any]:
    if (magic := file.number("I")) != _ARRAY_MAGIC:
        raise file.error(f"array of unknown version {magic:#x}; save the file anew with MXNet 1.x")
    if (storage := file.number("i")) != 0:
        raise file.error(f"sparse array (storage {storage}); weights must be dense")
    shape = file.numbers(f"{file.number('I')}Q")
    _device_type, _device_id, element = file.numbers("iii")
    if element not in _ELEMENTS:
        raise file.error(f"elements of unknown type {element}")
    dtype = np.dtype(_ELEMENTS[element])
    return np.frombuffer(file.take(math.prod(shape) * dtype.itemsize), dtype).reshape(shape)


class _File:
    """A file read from front to back, whose complaints say where they arose."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.data = memoryview(path.read_bytes())
        self.offset = 0

    @property
    def remaining(self) -> int:
        return len(self.data) - self.offset

    def take(self, num_bytes: int) -> memoryview:
        if num_bytes > self.remaining:
            raise self.error(f"truncated: {num_bytes} bytes expected, {self.remaining} left")
        self.offset += num_bytes
        return self.data[self.offset - num_bytes : self.offset]

    def numbers(self, layout: str) -> tuple[int, ...]:
        """Little-endian integers, `layout` as in `struct`."""
        return struct.unpack(f"<{layout}", self.take(struct.calcsize(f"<{layout}")))

    def number(self, layout: str) -> int:
        return self.numbers(layout)[0]

    def text(self, num_bytes: int) -> str:
        return bytes(self.take(num_bytes)).decode(errors="replace")

    def error(self, complaint: str) -> ValueError:
        return ValueError(f"{self.path}, byte {self.offset}: {complaint}")


def load_mxnet(backbone: Backbone, params: Mapping[str, NDArray[Any]]) -> None:
    """Load what `read_mxnet` returned into a backbone of family `mxnet`, in place.

    `fc1_gamma` becomes 1 whatever `params` holds: so MXNet treats a gamma that its graph fixes.

    Raises:
        ValueError: The backbone is of another family, or any name is missing or unexpected or any
            shape differs; the backbone is then unchanged.
    """
    if (family := backbone.spec.get("family")) != "mxnet":
        raise ValueError(
            f"{backbone.name} is of family {family}, whose eps and pixel scale do not suit weights"
            " from MXNet; build it with family='mxnet'"
        )
    ours = _by_mxnet_name(backbone)
    found = {name: tuple(array.shape) for name, array in params.items()}
    if wrong := differences(shapes_of(ours), found):
        raise ValueError(
            f"these are not the weights of {backbone.name} with neck {backbone.spec['neck']} and"
            f" {backbone.embedding_dim} dimensions: {wrong}"
        )
    for name, tensor in ours.items():
        tensor.copy_(torch.ones(()) if name == _FIXED_GAMMA else torch.tensor(params[name]))


def mxnet_names(backbone: Backbone) -> Shapes:
    """The shapes of a backbone's tensors under the names that MXNet gives them.

    Raises:
        ValueError: The reference code has no such network.
    """
    try:
        return shapes_of(_by_mxnet_name(backbone))
    except (KeyError, ValueError) as error:
        raise ValueError(f"MXNet has no names for the layers of {backbone.name}") from error


def _by_mxnet_name(backbone: Backbone) -> dict[str, Tensor]:
    """Every parameter and running statistic of a backbone under the name that MXNet gives it."""
    tensors = {}
    for key, tensor in backbone.state_dict().items():
        path, _, field = key.rpartition(".")
        if field == "num_batches_tracked":
            continue  # MXNet keeps no such count, and with a constant momentum it is never used
        if isinstance(backbone.get_submodule(path), (_BatchNorm, nn.PReLU)):
            field = _GAMMA_FIELDS[field]
        kind = "aux" if field.startswith("moving") else "arg"
        tensors[f"{kind}:{_layer_name(path)}_{field}"] = tensor
    return tensors


_GAMMA_FIELDS = {
    "weight": "gamma",
    "bias": "beta",
    "running_mean": "moving_mean",
    "running_var": "moving_var",
}
_SINGLE_LAYERS = {
    # IResNet's stem
    "conv1": "conv0",
    "bn1": "bn0",
    "prelu": "relu0",
    # necks E and FC
    "bn2": "bn1",
    "fc": "pre_fc1",
    "features": "fc1",
    # neck GDC
    "features.layers.0.layers.0": "conv_6dw7_7_conv2d",
    "features.layers.0.layers.1": "conv_6dw7_7_batchnorm",
    "features.layers.2": "pre_fc1",
    "features.layers.3": "fc1",
}
_UNIT_LAYERS = {
    "bn1": "bn1",
    "conv1": "conv1",
    "bn2": "bn2",
    "prelu": "relu1",
    "conv2": "conv2",
    "bn3": "bn3",
    "downsample.0": "conv1sc",
    "downsample.1": "sc",
}
_MOBILE_STAGES = {
    "0": "conv_1",
    "1": "conv_2_dw",
    "2": "dconv_23",
    "3": "res_3",
    "4": "dconv_34",
    "5": "res_4",
    "6": "dconv_45",
    "7": "res_5",
    "conv_sep": "conv_6sep",
}


def _layer_name(path: str) -> str:
    """MXNet's name of the layer at `path`: `stage3_unit13_conv1` of `layer3.12.conv1`."""
    if path in _SINGLE_LAYERS:
        return _SINGLE_LAYERS[path]
    if unit := re.fullmatch(r"layer(\d)\.(\d+)\.(.+)", path):
        stage, index, layer = unit.groups()
        return f"stage{stage}_unit{int(index) + 1}_{_UNIT_LAYERS[layer]}"
    return _mobile_layer_name(path)


def _mobile_layer_name(path: str) -> str:
    """The same for MobileFaceNet: `res_3_block0_conv_dw_batchnorm` of 3, 0, 1, 1."""
    stage, *inner, layer = path.replace("layers.", "").split(".")
    name = _MOBILE_STAGES[stage]
    if len(inner) == 2:  # a bottleneck among others
        name = f"{name.replace('conv_2_dw', 'res_2')}_block{inner[0]}"
    if inner:
        name += "_" + ("conv_sep", "conv_dw", "conv_proj")[int(inner[-1])]
    return name + "_" + ("conv2d", "batchnorm", "relu")[int(layer)]
