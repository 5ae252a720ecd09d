"""`facescale ijb`: a trained model on IJB-B or IJB-C, 1:1 and 1:N."""

import argparse
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from facescale.cli.networks import add_network_options, check_network_options, open_network
from facescale.cli.parser import Parser
from facescale.cli.progress import show_progress
from facescale.cli.terminal import PICTURES, file_to_write, say, show, show_json, table

if TYPE_CHECKING:
    from facescale.evaluation.templates import IjbResult

USAGE = "facescale ijb MODEL ROOT [--images DIR] [options]"
ABOUT = """
ROOT is the folder that InsightFace distributes, with the lists in ROOT/meta and the images in
ROOT/loose_crop. MODEL may also be a .npy of embeddings: a row is that of an image, followed by that
of its mirror image."""


def add_options(parser: Parser) -> None:
    """What the command understands."""
    add_network_options(parser)
    add, choice = parser.add_argument, argparse.BooleanOptionalAction
    add("root", metavar="ROOT", help="folder of the set, with meta/ in it")
    add("--images", metavar="DIR", help="folder of the images [ROOT/loose_crop]")
    add("--norm", action=choice, default=True, help="weight an image by its embedding's length")
    add("--detector", action=choice, default=True, help="weight an image by the detector's score")
    add("--plot", metavar="FILE", help="draw the ROC curve to this PNG")
    add("--scores", metavar="FILE", help="write the cosine of every pair to this .npy")
    add("--json", action="store_true", help="for programs: figures, rates as fractions")


def run(chosen: argparse.Namespace) -> None:
    """Embed, pool and compare; the ranks share the images and the pairs."""
    check_network_options(chosen)
    plot = None if chosen.plot is None else file_to_write(chosen.plot, *PICTURES)
    scores = None if chosen.scores is None else file_to_write(chosen.scores, ".npy")
    from facescale.distributed import processes, world_group
    from facescale.evaluation.ijb import open_ijb
    from facescale.evaluation.templates import Weighting, run_ijb, run_ijb_from_rows

    with processes(chosen.device) as device:
        ijb, world = open_ijb(chosen.root, chosen.images), world_group()
        weighting = Weighting(chosen.flip, chosen.norm, chosen.detector)
        if Path(chosen.model).suffix == ".npy":
            result = run_ijb_from_rows(ijb, _stored(chosen.model), weighting)
        else:
            network = open_network(chosen, device)
            watch = partial(show_progress, shown=world.rank == 0)
            result = run_ijb(ijb, network, weighting, chosen.batch_size, device, world, watch)
        if world.rank != 0:
            return
        if scores is not None:
            np.save(scores, result.scores)
        if plot is not None:
            from facescale.evaluation.plots import plot_roc

            plot_roc(plot, {result.name: result.roc})
        if chosen.json:
            show_json(result.figures())
        else:
            _show(result)


def _stored(path: str) -> NDArray[np.float32]:
    """Embeddings in InsightFace's form, not read before they are needed."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} is not a file; give the embeddings of the images")
    try:
        rows: NDArray[np.float32] = np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError as error:
        raise ValueError(
            f"{path} is not an array of embeddings ({error}); give a .npy of shape (images, 2 dim)"
        ) from error
    return rows


def _show(result: "IjbResult") -> None:
    say(
        f"{result.name}: {result.num_images:,} images, {result.num_templates:,} templates, "
        f"{len(result.scores):,} pairs; AUC {result.roc.auc:.6f}, EER {100 * result.roc.eer:.2f} %"
    )
    _show_verification(result)
    if result.closed is not None:
        _show_identification(result)


def _show_verification(result: "IjbResult") -> None:
    """TAR at each FAR by both rules, and the threshold."""
    shown = table("1:1  FAR", "TAR", "TAR (InsightFace)", "cosine >=")
    for row in result.tars:
        note = "" if row.resolved else " *"  # fewer pairs than this FAR needs
        shown.add_row(
            f"{row.far:g}{note}",
            f"{100 * row.tar:.2f} %",
            f"{100 * row.insightface:.2f} %",
            f"{row.threshold:.4f}",
        )
    show(shown)
    if not all(row.resolved for row in result.tars):
        say(f"  * below 1 / pairs of different people ({result.roc.resolution:.1e})")


def _show_identification(result: "IjbResult") -> None:
    """Rank-k, and TPIR at FPIR by InsightFace's rule and by the protocol of IJB."""
    assert result.closed is not None
    shown = table("1:N", "InsightFace", "cosine >", "gallery 1, open", "gallery 2, open")
    for k, rate in result.closed.ranks.items():
        shown.add_row(f"rank {k}", f"{100 * rate:.2f} %")
    for i, point in enumerate(result.closed.operating):
        shown.add_row(
            f"TPIR at FPIR {point.fpir:g}",
            f"{100 * point.tpir:.2f} %",
            f"{point.threshold:.4f}",
            *(f"{100 * gallery.operating[i].tpir:.2f} %" for gallery in result.open),
        )
    show(shown)
