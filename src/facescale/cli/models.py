"""What commands share that take a trained backbone."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from facescale.cli.parser import Parser

if TYPE_CHECKING:
    from facescale.backbones import Backbone


def add_model_options(parser: Parser) -> None:
    """A model of our own, or weights and the network they belong to."""
    add = parser.add_argument
    add("model", metavar="MODEL", help="run folder, model.safetensors, or weights of --backbone")
    add("--backbone", metavar="NAME", help="network of weights that do not say it: r50, mbf, ...")
    add("--family", choices=["mxnet", "arcface_torch"], help="whose constants the network has")


def open_model(chosen: argparse.Namespace) -> "Backbone":
    """A model of our own, which says what it is, or the weights of a named network; eval mode."""
    path = _model_file(Path(chosen.model))
    from facescale import backbones
    from facescale.training import load_backbone, load_weights_

    if chosen.backbone is None:
        return load_backbone(path)
    backbone = backbones.build(chosen.backbone, family=chosen.family)
    load_weights_(backbone, path)
    return backbone.eval()


def _model_file(path: Path) -> Path:
    """The file of a run's model, or the path itself."""
    if not path.is_dir():
        return path
    model = path / "model.safetensors"
    if not model.exists() and (path / "checkpoints").is_dir():
        raise FileNotFoundError(
            f"{path} is a run that has not ended: `facescale unpack {path}` writes the model of "
            "its last checkpoint"
        )
    return model
