"""Backbones in files: safetensors with the spec to rebuild them; other projects' are read too.

No file is trusted: a spec is compared with the tensors beside it before a network is built.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from facescale.backbones import Backbone, build
from facescale.files import write_whole
from facescale.models import adaface
from facescale.models.formats import READERS
from facescale.models.identify import identify, own_names, skeleton
from facescale.models.mxnet import load_mxnet, mxnet_names, read_mxnet
from facescale.models.names import Shapes, differences, shapes_of
from facescale.models.tensorfile import encode, open_tensors
from facescale.models.torchfile import beside, read_state_dict, without_prefixes

SPEC = "facescale.backbone"
"""Key of the spec in a file's metadata."""
TORCH_SUFFIXES = (".pt", ".pth", ".ckpt")
_MAX_SPEC = 10_000  # characters


def save_backbone(path: Path | str, backbone: Backbone) -> None:
    """Write the weights, and in the metadata what `backbones.build` needs to make it again."""
    parts = encode(backbone.state_dict(), {SPEC: json.dumps(backbone.spec)})
    write_whole(Path(path), parts)


def load_backbone(path: Path | str, name: str | None = None, family: str | None = None) -> Backbone:
    """The backbone that a file holds, in eval mode.

    A `model.safetensors` of this package says which network it is. For .pt, .pth, .ckpt, MXNet's
    .params and other safetensors files the network is found by the names and shapes of the tensors.
    IR networks of AdaFace, CVLface and face.evoLVe become IResNets; see `models.adaface`.

    Args:
        path: The file.
        name: The network, where it cannot be found.
        family: Whose constants it was trained with. Not given: .params are MXNet's, others are
            arcface_torch's unless their tensors or their spec say otherwise.

    Raises:
        FileNotFoundError: No such file.
        ValueError: It cannot be read, or holds another network than it or `name` says.
    """
    path = _existing(path)
    if path.suffix == ".params":
        arrays = read_mxnet(path)
        shapes = {array: tuple(value.shape) for array, value in arrays.items()}
        backbone = build(**identify(shapes, path, name, family or "mxnet", mxnet_names))
        load_mxnet(backbone, arrays)
        return backbone.eval()
    tensors, spec = _read(path)
    if spec is None:
        spec = identify(shapes_of(tensors), path, name, family)
    for option, given in (("name", name), ("family", family)):
        if given is not None and spec.get(option, given) != given:
            raise ValueError(f"{path}: its {option} is {spec[option]!r:.60}, not {given}")
    backbone = build_checked(spec, shapes_of(tensors), path)
    _fill_(backbone, tensors)
    return backbone.eval()


def load_weights_(backbone: nn.Module, path: Path | str) -> None:
    """Fill `backbone` from .safetensors, a .pt, .pth or .ckpt of others, or MXNet's .params.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Another kind of file, or weights of another network or family; the backbone is
            then unchanged.
    """
    path = _existing(path)
    if path.suffix == ".params":
        assert isinstance(backbone, Backbone)
        load_mxnet(backbone, read_mxnet(path))
        return
    tensors, spec = _read(path)
    if spec is not None and isinstance(backbone, Backbone):
        ours: Mapping[str, Any] = backbone.spec
        for option in ("family", "image_size"):
            if spec.get(option, ours.get(option)) != ours.get(option):
                raise ValueError(
                    f"{path} was trained with {option} {spec[option]!r:.60}, this network has "
                    f"{ours.get(option)}; give backbone.{option} as in the file"
                )
    _take_(backbone, tensors, path)


def take_foreign_(backbone: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Fill `backbone` with what `torchfile.state_dict_in` gave; raises as `load_weights_` does."""
    _take_(backbone, _with_our_names(dict(tensors)), path)


def _take_(backbone: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    if wrong := differences(shapes_of(backbone.state_dict()), shapes_of(tensors)):
        raise ValueError(f"{path} holds weights of another network: {wrong}")
    _fill_(backbone, tensors)


def family_of(path: Path | str, name: str) -> Literal["mxnet", "arcface_torch"]:
    """The family of the weights of network `name` in a file; raises as `load_backbone` does."""
    path = _existing(path)
    if path.suffix == ".params":
        return "mxnet"
    tensors, spec = _read(path)
    if spec is None:
        spec = identify(shapes_of(tensors), path, name)
    return "mxnet" if skeleton(spec).spec.get("family") == "mxnet" else "arcface_torch"


def beside_network(path: Path) -> list[str]:
    """Names of the tensors in a file that `load_backbone` leaves out, such as a head's."""
    if path.suffix in TORCH_SUFFIXES:
        return beside(read_state_dict(path))
    if path.suffix != ".safetensors":
        return []
    with open_tensors(path) as file:
        if SPEC in file.metadata:
            return []
        return beside({name: file.tensor(name) for name in file.kinds})


def build_checked(spec: Mapping[str, Any], shapes: Shapes, path: Path) -> Backbone:
    """The network of a spec from a file, built once it is known to have tensors of these shapes.

    Raises:
        ValueError: The spec is ill-typed or no network's, or the tensors differ.
    """
    try:
        expected = own_names(skeleton(spec))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if wrong := differences(expected, shapes):
        raise ValueError(f"{path} holds weights of another network than it says: {wrong}")
    return build(**spec)


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """All tensors of a file, and the spec where it has one."""
    if reader := READERS.get(path.suffix):
        return dict(reader(path)), None
    if path.suffix in TORCH_SUFFIXES:
        return _with_our_names(read_state_dict(path)), None
    if path.suffix != ".safetensors":
        known = ", ".join([*READERS, ".safetensors", *TORCH_SUFFIXES])
        raise ValueError(f"{path}: weights are {known} or .params")
    with open_tensors(path) as file:
        tensors = {name: file.tensor(name) for name in file.kinds}
    text = file.metadata.get(SPEC)
    if text is None:
        return _with_our_names(tensors), None
    try:
        spec = json.loads(text[:_MAX_SPEC])
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: the spec of its backbone is not JSON: {error}") from error
    if not isinstance(spec, dict):
        raise ValueError(f"{path}: the spec of its backbone is {spec!r:.60}")
    return tensors, spec


def _with_our_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without common prefixes, and under the names of this package where we know the others'."""
    return adaface.with_our_names(without_prefixes(tensors), rgb=adaface.is_rgb(tensors))


def momenta_with_our_names(
    momenta: Mapping[str, Tensor], weights: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Momenta of the weights in a file, by the names there, converted as the weights are."""
    network, rgb = without_prefixes(dict(weights)), adaface.is_rgb(weights)
    return adaface.with_our_names(without_prefixes(dict(momenta)), rgb=rgb, weights=network)


def _fill_(backbone: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy tensors whose names and shapes are known to agree."""
    for name, value in backbone.state_dict().items():
        value.copy_(tensors[name])


def _existing(path: Path | str) -> Path:
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file; give a model.safetensors or model.pt")
    return path
