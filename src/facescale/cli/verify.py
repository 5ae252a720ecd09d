"""`facescale verify`: a trained backbone on sets of pairs."""

import argparse
from typing import TYPE_CHECKING

from facescale.cli.models import add_model_options, open_model
from facescale.cli.parser import Parser
from facescale.cli.tables import show_verifications
from facescale.cli.terminal import escape, file_to_write, say, show_json

if TYPE_CHECKING:
    from facescale.evaluation.verification import Verification

USAGE = "facescale verify MODEL --pairs SET [SET ...] [options]"


def add_options(parser: Parser) -> None:
    """What the command understands."""
    add_model_options(parser)
    add = parser.add_argument
    add("--pairs", nargs="+", required=True, metavar="SET", help=".bin files, or att")
    add("--folds", type=int, metavar="N", help="of the accuracy [10, fewer for small sets]")
    add("--plot", metavar="FILE", help="draw the ROC curves to this PNG")
    add("--batch_size", type=int, default=64, metavar="N", help="images at a time [64]")
    add("--device", choices=["auto", "cpu", "cuda"], default="auto", help="[auto]")
    add("--json", action="store_true", help="for programs: figures, rates as fractions")


def run(chosen: argparse.Namespace) -> None:
    """Verify on every set, the images shared by all ranks."""
    if chosen.batch_size < 1:
        raise ValueError(f"--batch_size must be at least 1, got {chosen.batch_size}")
    plot = None if chosen.plot is None else file_to_write(chosen.plot)
    backbone = open_model(chosen)
    from facescale.acceleration.folding import inference_copy
    from facescale.distributed import processes, world_group
    from facescale.evaluation.embedding import verify_pairs
    from facescale.evaluation.verification import FOLDS, choose_folds
    from facescale.training.sets import open_sets

    with processes(chosen.device) as device:
        backbone, world = inference_copy(backbone.to(device)), world_group()
        sets = open_sets(chosen.pairs)
        folds = {pairs.name: chosen.folds or choose_folds(pairs.same) for pairs in sets}
        answers = {
            pairs.name: verify_pairs(
                backbone,
                pairs,
                chosen.batch_size,
                device,
                world.rank,
                world.size,
                world.gather_rows,
                folds[pairs.name],
            )
            for pairs in sets
        }
        if world.rank != 0:
            return
        if plot is not None:
            from facescale.evaluation.plots import plot_roc

            plot_roc(plot, answers)
        if chosen.json:
            show_json({name: _figures(name, answers[name], folds[name]) for name in answers})
            return
        show_verifications(answers)
        for name, number in folds.items():
            if number != FOLDS:
                say(f"{escape(name)}: accuracy over {number} folds; published ones have {FOLDS}")


def _figures(name: str, answer: "Verification", folds: int) -> dict[str, float]:
    metrics = answer.metrics(name).items()
    return {key.removeprefix(f"{name}/"): value for key, value in metrics} | {"folds": folds}
