"""Backbones in files: safetensors with the recipe to rebuild them; the peers' are read too."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from facescale.backbones import Backbone, build
from facescale.models.formats import READERS
from facescale.models.mxnet import load_mxnet, read_mxnet


def save_backbone(path: Path | str, backbone: Backbone) -> None:
    """Write the weights, and in the metadata what `backbones.build` needs to make it again."""
    tensors = {name: value.contiguous() for name, value in backbone.state_dict().items()}
    path = Path(path)
    partial = path.with_suffix(".partial")
    save_file(tensors, partial, metadata={"facescale.backbone": json.dumps(backbone.spec)})
    partial.replace(path)


def load_backbone(path: Path | str) -> Backbone:
    """The backbone of a `model.safetensors` that this package wrote, in eval mode.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Not such a file.
    """
    path = _existing(path)
    try:
        tensors, metadata = _read_safetensors(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file: {error}") from error
    recipe = metadata.get("facescale.backbone")
    if recipe is None:
        raise ValueError(f"{path} does not say which backbone it holds; name one: --backbone r50")
    backbone = build(**json.loads(recipe))
    _fill(backbone, tensors, path)
    return backbone.eval()


def load_weights_(backbone: nn.Module, path: Path | str) -> None:
    """Fill `backbone` from .safetensors, arcface_torch's .pt or .pth, or MXNet's .params.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Another kind of file, or weights of another network.
    """
    path = _existing(path)
    if path.suffix == ".params":
        assert isinstance(backbone, Backbone)
        load_mxnet(backbone, read_mxnet(path))
        return
    _fill(backbone, _read_tensors(path), path)


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        if reader := READERS.get(path.suffix):
            return dict(reader(path))
        if path.suffix == ".safetensors":
            return _read_safetensors(path)[0]
        if path.suffix in (".pt", ".pth"):
            state: Any = torch.load(path, map_location="cpu", weights_only=True)
            return dict(state)
    except Exception as error:  # each library has its own errors for a damaged file
        raise ValueError(f"{path} cannot be read as weights: {error}") from error
    known = ", ".join([*READERS, ".safetensors", ".pt", ".pth"])
    raise ValueError(f"{path}: weights are {known} or .params")


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors of a file, and its metadata."""
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return tensors, file.metadata() or {}


def _fill(backbone: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    try:
        backbone.load_state_dict(tensors)
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip()
        raise ValueError(f"{path} holds weights of another network: {first}") from error


def _existing(path: Path | str) -> Path:
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file; give a model.safetensors or model.pt")
    return path
