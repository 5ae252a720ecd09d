"""What commands share that take a trained backbone."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from facescale.cli.parser import Parser

if TYPE_CHECKING:
    from facescale.backbones import Backbone


def add_model_options(parser: Parser) -> None:
    """A model of our own, or another project's weights."""
    add = parser.add_argument
    add(
        "model",
        metavar="MODEL",
        help="run folder, checkpoint, model.safetensors, or .pt, .pth, .ckpt, .params of others",
    )
    add("--backbone", metavar="NAME", help="network of weights that do not tell it: r50, mbf, ...")
    add(
        "--family",
        choices=["mxnet", "arcface_torch"],
        help="whose constants; of .pt and .pth arcface_torch's unless their tensors tell otherwise",
    )


def open_model(chosen: argparse.Namespace) -> "Backbone":
    """The backbone of a file, of a run, or of the last checkpoint of one in progress; eval mode."""
    from facescale.checkpoint import folder as checkpoint
    from facescale.checkpoint import unpack
    from facescale.distributed import Group
    from facescale.models.weights import load_backbone

    path = Path(chosen.model)
    if not path.is_dir():
        return load_backbone(path, chosen.backbone, chosen.family)
    if (path / "model.safetensors").exists():
        return load_backbone(path / "model.safetensors", chosen.backbone, chosen.family)
    folder = checkpoint.find(path, Group())
    sys.stderr.write(f"{path} has no model.safetensors yet: taking the backbone of {folder}\n")
    return unpack.load_backbone(folder)
