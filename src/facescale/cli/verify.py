"""`facescale verify`: a trained backbone on sets of pairs."""

from jsonargparse import ArgumentParser, Namespace
from rich.console import Console

from facescale.acceleration.folding import inference_copy
from facescale.cli.models import add_model_options, open_model
from facescale.cli.tables import verification_table
from facescale.distributed import processes, world_group
from facescale.evaluation.embedding import verify_pairs
from facescale.evaluation.plots import plot_roc
from facescale.training.state import open_pairs

HELP = "verify a trained backbone on pairs"


def add_options(parser: ArgumentParser) -> None:
    """What the command understands."""
    add_model_options(parser)
    parser.add_argument("--pairs", nargs="+", required=True, help=".bin files, or att")
    parser.add_argument("--plot", type=str, help="draw the ROC curves to this PNG")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")


def run(chosen: Namespace) -> None:
    """Verify on every set, the images shared by all ranks."""
    with processes(chosen.device) as device:
        backbone = inference_copy(open_model(chosen).to(device))
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
