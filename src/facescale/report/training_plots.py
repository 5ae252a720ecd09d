"""Curves of several training runs as PNG, each for a wide page and for a narrow one."""

from collections.abc import Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter, MaxNLocator

from facescale.evaluation.plots import STYLE
from facescale.report.plots import legend_text, png
from facescale.report.training_runs import ACCURACY, TrainingRun, all_sets

WIDE, NARROW = 5.0, 3.7  # inches: half of a page, and a phone
_LETTERS = 11  # of the legend in an inch
FEW = 40  # up to so many points are drawn as dots
SMOOTHED = 200  # points of a line of losses; more of them hide the other runs

Curve = tuple[str, bytes, bytes]
"""Title, the plot for a wide page, and that for a narrow one."""


def plot_runs(runs: Sequence[TrainingRun]) -> list[Curve]:
    """Accuracy on each set, loss, learning rate and speed over the steps, where a run has them."""
    wanted: list[tuple[str, str, str]] = [
        (f"{name}, accuracy", f"{name}{ACCURACY}", "accuracy") for name in all_sets(runs)
    ]
    wanted += [
        ("Loss", "loss", "loss"),
        ("Learning rate", "lr", "learning rate"),
        ("Speed", "images_per_s", "images/s"),
    ]
    curves = []
    for title, key, label in wanted:
        if any(run.series(key) for run in runs):
            wide, narrow = (_plot(runs, key, label, width) for width in (WIDE, NARROW))
            curves.append((title, wide, narrow))
    return curves


def _plot(runs: Sequence[TrainingRun], key: str, ylabel: str, width: float) -> bytes:
    named = [run.name for run in runs if run.series(key)]
    columns = max(1, min(len(named), int(_LETTERS * width // (max(map(len, named)) + 8))))
    with rc_context(STYLE):
        legend = 0.22 * -(-len(named) // columns)
        figure = Figure(figsize=(width, 2.7 + legend), layout="constrained")
        axes = figure.add_subplot(xlabel="step", ylabel=ylabel)
        for run in runs:  # one without points keeps its colour for the other plots
            steps, values = _thinned(run.series(key))
            marker = "o" if len(steps) <= FEW else None
            label = legend_text(run.name) if steps else None
            axes.plot(steps, values, marker=marker, markersize=4, label=label)
        if key.endswith(ACCURACY):
            axes.yaxis.set_major_formatter(FuncFormatter(lambda rate, _: f"{100 * rate:g} %"))
        elif key == "images_per_s":
            axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(MaxNLocator(4 if width == NARROW else 7, integer=True))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        figure.legend(loc="outside lower center", ncols=columns)
        return png(figure)


def _thinned(points: Sequence[tuple[int, float]]) -> tuple[list[float], list[float]]:
    """At most `SMOOTHED` points: means of neighbours, at their mean step."""
    if len(points) <= SMOOTHED:
        return [step for step, _ in points], [value for _, value in points]
    parts = [part.mean(axis=0) for part in np.array_split(np.array(points, np.float64), SMOOTHED)]
    return [float(step) for step, _ in parts], [float(value) for _, value in parts]
