"""`facescale ijb`: a trained model on IJB-B or IJB-C, 1:1 and 1:N."""

import json
from functools import partial
from pathlib import Path

import numpy as np
from jsonargparse import ArgumentParser, Namespace
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from facescale.cli.networks import add_network_options, open_network
from facescale.cli.progress import show_progress
from facescale.distributed import processes, world_group
from facescale.evaluation.ijb import open_ijb
from facescale.evaluation.plots import plot_roc
from facescale.evaluation.templates import IjbResult, Weighting, run_ijb, run_ijb_from_rows

HELP = "evaluate a trained model on IJB-B or IJB-C"


def add_options(parser: ArgumentParser) -> None:
    """What the command understands."""
    add_network_options(parser)
    parser.add_argument("root", help="folder of the set, with meta/ in it")
    parser.add_argument("--images", type=str, help="folder of the images (ROOT/loose_crop)")
    parser.add_argument(
        "--norm", type=bool, default=True, help="weight an image by the length of its embedding"
    )
    parser.add_argument(
        "--detector", type=bool, default=True, help="weight an image by the detector's score"
    )
    parser.add_argument("--plot", type=str, help="draw the ROC curve to this PNG")
    parser.add_argument("--json", type=str, help="write the figures to this file")
    parser.add_argument("--scores", type=str, help="write the cosine of every pair to this .npy")


def run(chosen: Namespace) -> None:
    """Embed, pool and compare; the ranks share the images and the pairs."""
    with processes(chosen.device) as device:
        ijb = open_ijb(chosen.root, chosen.images)
        world = world_group()
        weighting = Weighting(chosen.flip, chosen.norm, chosen.detector)
        if Path(chosen.model).suffix == ".npy":
            result = run_ijb_from_rows(ijb, _stored(chosen.model), weighting)
        else:
            network = open_network(chosen, device)
            watch = partial(show_progress, shown=world.rank == 0)
            result = run_ijb(ijb, network, weighting, chosen.batch_size, device, world, watch)
        if world.rank == 0:
            _show(result)
            _write(result, chosen)


def _stored(path: str) -> NDArray[np.float32]:
    """Embeddings in InsightFace's form, not read before they are needed."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} is not a file; give the embeddings of the images")
    try:
        rows: NDArray[np.float32] = np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError as error:
        raise ValueError(f"{path} is not an array of embeddings: {error}") from error
    return rows


def _show(result: IjbResult) -> None:
    terminal = Console(highlight=False, width=10_000)  # no figure is cut
    terminal.print(
        f"{result.name}: {result.num_images:,} images, {result.num_templates:,} templates, "
        f"{len(result.scores):,} pairs; AUC {result.roc.auc:.6f}, EER {100 * result.roc.eer:.2f} %"
    )
    terminal.print(tar_at_far_table(result))
    if result.closed is not None:
        terminal.print(identification_table(result))


def tar_at_far_table(result: IjbResult) -> Table:
    """TAR at each FAR by both rules, and the threshold."""
    table = _table("1:1  FAR", "TAR", "TAR (InsightFace)", "cosine >=")
    for row in result.tars:
        note = "" if row.resolved else " *"  # fewer pairs than this FAR needs
        table.add_row(
            f"{row.far:g}{note}",
            f"{100 * row.tar:.2f} %",
            f"{100 * row.insightface:.2f} %",
            f"{row.threshold:.4f}",
        )
    if not all(row.resolved for row in result.tars):
        table.caption = f"* below 1 / pairs of different people ({result.roc.resolution:.1e})"
    return table


def identification_table(result: IjbResult) -> Table:
    """Rank-k, and TPIR at FPIR by InsightFace's rule and by the protocol of IJB."""
    assert result.closed is not None
    closed = result.closed
    table = _table("1:N", "InsightFace", "cosine >", "gallery 1, open", "gallery 2, open")
    for k, rate in closed.ranks.items():
        table.add_row(f"rank {k}", f"{100 * rate:.2f} %")
    for i, point in enumerate(closed.operating):
        table.add_row(
            f"TPIR at FPIR {point.fpir:g}",
            f"{100 * point.tpir:.2f} %",
            f"{point.threshold:.4f}",
            *(f"{100 * gallery.operating[i].tpir:.2f} %" for gallery in result.open),
        )
    return table


def _table(first: str, *titles: str) -> Table:
    table = Table(box=None, padding=(0, 2), header_style="bold", caption_justify="left")
    table.add_column(first, no_wrap=True)
    for title in titles:
        table.add_column(title, justify="right", no_wrap=True)
    return table


def _write(result: IjbResult, chosen: Namespace) -> None:
    """The files that were asked for."""
    if chosen.json is not None:
        Path(chosen.json).write_text(json.dumps(result.figures(), indent=1) + "\n")
    if chosen.scores is not None:
        np.save(chosen.scores, result.scores)
    if chosen.plot is not None:
        plot_roc(chosen.plot, {result.name: result.roc})
