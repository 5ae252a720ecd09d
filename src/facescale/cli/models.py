"""What commands share that take a trained backbone."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from facescale.cli.parser import Parser

if TYPE_CHECKING:
    from facescale.backbones import Backbone

TRIES = 3  # a run that trains may drop its last checkpoint while it is read


def add_model_options(parser: Parser) -> None:
    """A model of our own, or another project's weights."""
    add = parser.add_argument
    add(
        "model",
        metavar="MODEL",
        help="run folder, checkpoint, model.safetensors, or .pt, .pth, .ckpt, .params of others",
    )
    add(
        "--checkpoint",
        metavar="WHICH",
        help="of a run folder: last, best (see checkpoint.best), or a step [model.safetensors]",
    )
    add_weights_options(parser)


def add_weights_options(parser: Parser) -> None:
    """What a file of weights may not say."""
    add = parser.add_argument
    add("--backbone", metavar="NAME", help="network of weights that do not tell it: r50, mbf, ...")
    add(
        "--family",
        choices=["mxnet", "arcface_torch"],
        help="whose constants; of .pt and .pth arcface_torch's unless their tensors tell otherwise",
    )


def model_place(chosen: argparse.Namespace) -> Path:
    """The file or the checkpoint that MODEL and --checkpoint stand for.

    Raises:
        FileNotFoundError: There is none.
        ValueError: --checkpoint without a run folder.
    """
    path, which = Path(chosen.model), getattr(chosen, "checkpoint", None)
    if which is not None and (not path.is_dir() or path.name.startswith("step-")):
        raise ValueError(
            f"--checkpoint chooses within a run folder, and {path} is none; give the folder of the "
            "run, or leave --checkpoint out"
        )
    if not path.is_dir():
        return path
    from facescale.checkpoint import best, folder

    weights, saved = path / "model.safetensors", folder.checkpoints(path / "checkpoints")
    # a finished run may have been resumed: then its last checkpoint is newer
    later = saved and weights.exists() and _changed(saved[-1]) > _changed(weights)
    if which is None and weights.exists() and not later:
        return weights
    return best.choose(path, which or "last")


def _changed(path: Path) -> float:
    return path.stat().st_mtime


def open_model(chosen: argparse.Namespace) -> "Backbone":
    """The backbone of a file, of a run, or of a checkpoint; eval mode."""
    from facescale.checkpoint import folder as checkpoint
    from facescale.checkpoint import unpack
    from facescale.distributed import Group, agree, world_group
    from facescale.models.weights import load_backbone

    tries = TRIES if world_group().size == 1 else 1
    for tried in range(1, tries + 1):
        place = Path(agree(str(model_place(chosen))))  # the run may save between two ranks
        if place.is_file() or not place.is_dir():
            return load_backbone(place, chosen.backbone, chosen.family)
        try:
            backbone = unpack.load_backbone(checkpoint.find(place, Group()))
        except (FileNotFoundError, ValueError):
            if place.is_dir() or tried == tries:  # not dropped by the run that writes it
                raise
            continue
        if place != Path(chosen.model):
            sys.stderr.write(f"{chosen.model}: taking the backbone of {place}\n")
        return backbone
    raise AssertionError
