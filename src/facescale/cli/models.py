"""What commands share that take a trained backbone."""

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from facescale import backbones
from facescale.training import load_backbone, load_weights_


def add_model_options(parser: ArgumentParser) -> None:
    """A model of our own, or weights and the network they belong to."""
    parser.add_argument("model", help="run folder, model.safetensors, or weights of --backbone")
    parser.add_argument("--backbone", choices=backbones.NAMES, help="network of a model.pt")
    parser.add_argument("--family", choices=["mxnet", "arcface_torch"], help="its constants")


def open_model(chosen: Namespace) -> backbones.Backbone:
    """A model of our own, which says what it is, or the weights of a named network; eval mode."""
    path = Path(chosen.model)
    if chosen.backbone is None:
        return load_backbone(path / "model.safetensors" if path.is_dir() else path)
    backbone = backbones.build(chosen.backbone, family=chosen.family)
    load_weights_(backbone, path)
    return backbone.eval()
