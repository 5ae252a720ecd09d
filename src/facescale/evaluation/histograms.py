"""Histograms of the scores of same and different pairs, as PNG."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from facescale.evaluation.judgement import Judgement
from facescale.evaluation.plots import COLOURS, GREY, STYLE, WIDTH, save

BINS = 80


def plot_scores(path: Path | str, judged: Mapping[str, Judgement]) -> None:
    """Draw the cosines of both kinds of pairs, a panel a set, into a PNG.

    Raises:
        ValueError: There is no set.
    """
    if not judged:
        raise ValueError("no scores to draw: pass at least one set")
    scores = np.concatenate([one.scores for one in judged.values()])
    edges = np.linspace(min(scores.min(), 0.0), max(scores.max(), 1.0), BINS + 1).tolist()
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 0.8 + 2.4 * len(judged)), layout="constrained")
        panels = figure.subplots(len(judged), sharex=True, squeeze=False)[:, 0]
        for axes, (name, one) in zip(panels, judged.items(), strict=True):
            _draw_scores(axes, name, one, edges)
        panels[-1].set_xlabel("cosine of the pair")
        save(figure, path)


def _draw_scores(axes: Axes, name: str, one: Judgement, edges: list[float]) -> None:
    kinds = (("one person", one.same, COLOURS[0]), ("different people", ~one.same, COLOURS[1]))
    for label, kind, colour in kinds:
        count = int(kind.sum())
        axes.hist(
            one.scores[kind],
            edges,
            weights=np.full(count, 1 / count),
            histtype="stepfilled",
            color=(colour, 0.35),
            edgecolor=colour,
            linestyle="-",
            label=f"{label} ({count:,})",
        )
    threshold = one.verification.threshold_cosine
    line = axes.axvline(threshold, ymax=0.85, color=GREY, linestyle="--", linewidth=1)
    line.set_label(f"threshold {threshold:.3f}")
    answer = one.verification
    title = f"{name}: accuracy {100 * answer.accuracy:.2f} %, EER {100 * answer.roc.eer:.2f} %"
    axes.set(title=title, ylabel="share of pairs", xlim=(edges[0], edges[-1]))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_ylim(0, 1.25 * axes.get_ylim()[1])  # room for the legend
    axes.legend(loc="upper left", ncols=3, fontsize=9)
