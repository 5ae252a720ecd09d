"""`facescale verify`: a trained backbone on sets of pairs."""

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace
from rich.console import Console

from facescale import backbones
from facescale.cli.tables import verification_table
from facescale.distributed import processes, world_group
from facescale.evaluation.embedding import verify_pairs
from facescale.evaluation.plots import plot_roc
from facescale.training import load_backbone, load_weights_
from facescale.training.state import open_pairs

HELP = "verify a trained backbone on pairs"


def add_options(parser: ArgumentParser) -> None:
    """What the command understands."""
    parser.add_argument("model", help="run folder, model.safetensors, or weights of --backbone")
    parser.add_argument("--pairs", nargs="+", required=True, help=".bin files, or att")
    parser.add_argument("--backbone", choices=backbones.NAMES, help="network of a model.pt")
    parser.add_argument("--family", choices=["mxnet", "arcface_torch"], help="its constants")
    parser.add_argument("--plot", type=str, help="draw the ROC curves to this PNG")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")


def run(chosen: Namespace) -> None:
    """Verify on every set, the images shared by all ranks."""
    with processes(chosen.device) as device:
        backbone = _open_model(chosen).to(device)
        world = world_group()
        answers = {}
        for source in chosen.pairs:
            pairs = open_pairs(source)
            answers[pairs.name] = verify_pairs(
                backbone,
                pairs,
                chosen.batch_size,
                device,
                world.rank,
                world.size,
                world.gather_rows,
            )
        if world.rank == 0:
            Console(highlight=False).print(verification_table(answers))
            if chosen.plot is not None:
                plot_roc(chosen.plot, answers)


def _open_model(chosen: Namespace) -> backbones.Backbone:
    """A model of our own, which says what it is, or the weights of a named network."""
    path = Path(chosen.model)
    if chosen.backbone is None:
        return load_backbone(path / "model.safetensors" if path.is_dir() else path)
    backbone = backbones.build(chosen.backbone, family=chosen.family)
    load_weights_(backbone, path)
    return backbone.eval()
