"""`facescale verify`: a trained backbone on sets of pairs."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from facescale.cli.networks import add_network_options, check_network_options, open_network
from facescale.cli.parser import Parser
from facescale.cli.tables import show_verifications
from facescale.cli.terminal import PICTURES, escape, file_to_write, say, show, show_json, table

if TYPE_CHECKING:
    from facescale.evaluation.intervals import Interval
    from facescale.evaluation.judgement import Judgement

USAGE = "facescale verify MODEL SET [SET ...] [options]"
ABOUT = """
SET is a .bin file, a list of pairs (LFW's pairs.txt, or lines FILE FILE 0|1), or att."""


def add_options(parser: Parser) -> None:
    """What the command understands."""
    add_network_options(parser)
    add = parser.add_argument
    add("sets", nargs="*", metavar="SET", help="verification sets")
    add("--pairs", nargs="+", default=[], metavar="SET", help="another way to name them")
    add("--images", metavar="DIR", help="folder of the images of lists [that of the list]")
    add("--far", nargs="+", type=float, default=[], metavar="X", help="more FARs to show TAR at")
    add("--folds", type=int, metavar="N", help="of the accuracy [10, fewer for small sets]")
    add("--plot", metavar="FILE", help="draw the ROC curves to this PNG")
    add("--histogram", metavar="FILE", help="draw the cosines of both kinds of pairs to this PNG")
    add("--json", action="store_true", help="for programs: figures, rates as fractions")


def run(chosen: argparse.Namespace) -> None:
    """Verify on every set, the images shared by all ranks."""
    check_network_options(chosen)
    if not (chosen.sets or chosen.pairs):
        raise ValueError("no verification set; give SET, such as lfw.bin")
    if wrong := [far for far in chosen.far if not 0 < far < 1]:
        raise ValueError(f"--far must be between 0 and 1, got {wrong[0]:g}")
    plots = [
        None if file is None else file_to_write(file, *PICTURES)
        for file in (chosen.plot, chosen.histogram)
    ]
    from facescale.distributed import processes, world_group
    from facescale.evaluation.judgement import judge_pairs
    from facescale.evaluation.thresholds import FARS
    from facescale.training.sets import open_sets

    with processes(chosen.device) as device:
        network, world = open_network(chosen, device), world_group()
        judged = {
            pairs.name: judge_pairs(
                network,
                pairs,
                folds=chosen.folds,
                flip=chosen.flip,
                batch_size=chosen.batch_size,
                device=device,
                world=world,
                fars=sorted({*FARS, *chosen.far}),
            )
            for pairs in open_sets([*chosen.sets, *chosen.pairs], images=chosen.images)
        }
        if world.rank == 0:
            _draw(judged, *plots)
            _show(judged, chosen.json)


def _draw(judged: "dict[str, Judgement]", roc: Path | None, histogram: Path | None) -> None:
    if roc is not None:
        from facescale.evaluation.plots import plot_roc

        plot_roc(roc, {name: one.verification for name, one in judged.items()})
    if histogram is not None:
        from facescale.evaluation.histograms import plot_scores

        plot_scores(histogram, judged)


def _show(judged: "dict[str, Judgement]", as_json: bool) -> None:
    if as_json:
        show_json({name: one.figures() for name, one in judged.items()})
        return
    from facescale.evaluation.verification import FOLDS

    show_verifications({name: one.verification for name, one in judged.items()})
    for one in judged.values():
        if one.folds != FOLDS:
            say(f"{escape(one.name)}: accuracy over {one.folds} folds; published ones have {FOLDS}")
    for one in judged.values():
        _show_operating_points(one)


def _show_operating_points(one: "Judgement") -> None:
    """TAR at each FAR by both rules, its interval and the threshold."""
    assert one.intervals is not None
    shown = table(f"{escape(one.name)}  FAR", "TAR", "95 %", "TAR (InsightFace)", "cosine >=")
    for row in one.tars:
        if row.resolved:
            shown.add_row(
                f"{row.far:g}",
                f"{100 * row.tar:.2f} %",
                _span(one.intervals.tar[row.far]),
                f"{100 * row.insightface:.2f} %",
                f"{row.threshold:.4f}",
            )
    say("")
    show(shown)
    for row in one.tars:
        if not row.resolved:
            say(f"  FAR {row.far:g} needs more than {one.verification.roc.num_different:,} pairs")
            break
    say(f"  accuracy {_span(one.intervals.accuracy)} %; 95 % intervals over {one.intervals.over}")


def _span(interval: "Interval") -> str:
    return f"{100 * interval.low:.2f} to {100 * interval.high:.2f}"
