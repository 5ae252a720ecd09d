"""Plots of a run as PNG: ROC curves, and loss, accuracy and learning rate over the steps."""

import io
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from cycler import cycler
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from facescale.evaluation.verification import FAR_TARGET, Floats, Roc, Verification
from facescale.files import write_whole

Curves = Mapping[str, Roc | Verification]
Series = tuple[Floats, Floats]

INK, GREY = "#222222", "#8a8a8a"
# Okabe and Ito's palette, which colour-blind people can tell apart, without black and pale yellow.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]
STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": GREY,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.prop_cycle": cycler(linestyle=["-", "--", ":"]) * cycler(color=COLOURS),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "figure.constrained_layout.h_pad": 0.08,
    "figure.constrained_layout.w_pad": 0.08,
    "figure.dpi": 150,
    "font.size": 10,
    "grid.color": "#e6e6e6",
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "text.color": INK,
    "xtick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.color": GREY,
    "ytick.labelcolor": INK,
}
WIDTH = 7.0  # inches
FEW = 40  # up to so many points are drawn as dots


def plot_roc(path: Path | str, curves: Curves) -> None:
    """Draw one curve per name, from the smallest FAR that the pairs can show, with a table.

    Raises:
        ValueError: There is no curve.
    """
    if not curves:
        raise ValueError("no curve to draw: pass at least one Roc or Verification")
    rocs = [_roc(curve) for curve in curves.values()]
    left = min(0.5, *(roc.resolution for roc in rocs))
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 4.7 + 0.2 * len(curves)), layout="constrained")
        axes = figure.add_subplot(
            xscale="log", xlabel="false accept rate (FAR)", ylabel="true accept rate (TAR)"
        )
        axes.set_title(_roc_title(curves))
        lines = [_draw_curve(axes, roc) for roc in rocs]
        chance = np.geomspace(left, 1.0, 200)
        lines += axes.plot(chance, chance, color=GREY, linestyle=(0, (4, 3)), linewidth=1)
        # Good curves all lie near the top: show the part of the axis on which they differ.
        lowest = min(roc.tar_at(roc.resolution) for roc in rocs)
        bottom = np.clip(np.floor(30 * lowest - 10) / 20, 0.0, 0.95)
        axes.set(xlim=(left, 1.0), ylim=(bottom, 1.0 + 0.01 * (1 - bottom)))
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0,) if left < 0.01 else (1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda far, _: f"{far:g}"))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda tar, _: f"{100 * tar:g} %"))
        _add_table(figure, lines, _roc_table(curves))
        save(figure, path)


def plot_training(path: Path | str, metrics: Sequence[Mapping[str, Any]]) -> None:
    """Draw the loss, the verification accuracy if there is any, and the learning rate.

    Args:
        path: The PNG to write.
        metrics: Lines of a log, in order. Each has "step" and any of "loss", "lr" and
            "NAME/accuracy" (see `Verification.metrics`); values that are not finite are left out.

    Raises:
        ValueError: No line has a loss.
    """
    losses = _series(metrics, "loss")
    if not len(losses[0]):
        raise ValueError('no loss to draw: lines of metrics need "step" and "loss"')
    keys = sorted({key for line in metrics for key in line if key.endswith("/accuracy")})
    accuracies = {key.removesuffix("/accuracy"): _series(metrics, key) for key in keys}
    heights = [3.0, 1.8, 0.8] if accuracies else [3.0, 0.8]
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 1.2 + sum(heights)), layout="constrained")
        panels = figure.subplots(len(heights), sharex=True, height_ratios=heights)
        panels[0].set_title(_training_title(losses, accuracies))
        _draw_losses(panels[0], losses)
        if accuracies:
            _draw_accuracies(panels[1], accuracies)
        _draw_learning_rate(panels[-1], _series(metrics, "lr"))
        figure.align_ylabels()
        save(figure, path)


def save(figure: Figure, path: Path | str) -> None:
    """Write a figure in the format of the suffix; OSError with the path if it cannot be written."""
    write_whole(Path(path), [rendered(figure, Path(path).suffix.removeprefix("."))])


def rendered(figure: Figure, format: str) -> bytes:
    """The file of a figure. A letter that the font lacks is drawn as a box, without a warning."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        figure.savefig(file, format=format)
    return file.getvalue()


def _roc(curve: Roc | Verification) -> Roc:
    return curve.roc if isinstance(curve, Verification) else curve


def _draw_curve(axes: Axes, roc: Roc) -> Line2D:
    """Draw a curve as steps, with circles where FAR is a power of ten."""
    # Where TAR does not rise a step needs no point: of the 15 million of IJB-C few remain.
    corners = np.append(np.flatnonzero(np.diff(roc.tar)) + 1, len(roc.tar) - 1)
    corners = corners[roc.far[corners] > roc.resolution]
    far = np.append(roc.resolution, roc.far[corners])
    tar = np.append(roc.tar_at(roc.resolution), roc.tar[corners])
    (line,) = axes.step(far, tar, where="post")
    decades = [d for d in 10.0 ** np.arange(-9, 0) if d >= roc.resolution]
    circles = Line2D(decades, [roc.tar_at(d) for d in decades], linestyle="none", marker="o")
    circles.set(markersize=5, markerfacecolor="white", markeredgecolor=line.get_color())
    circles.set(zorder=3, clip_on=False)
    axes.add_line(circles)
    return line


def _roc_title(curves: Curves) -> str:
    """The accuracies, or the areas if a curve has no accuracy."""
    verified = {n: 100 * c.accuracy for n, c in curves.items() if isinstance(c, Verification)}
    if len(verified) == len(curves):
        return "Accuracy " + _span(verified, "{:.2f} %")
    return "Area under the curve " + _span({n: _roc(c).auc for n, c in curves.items()}, "{:.4f}")


def _span(values: Mapping[str, float], form: str) -> str:
    """The lowest and the highest value with their names, or the only one."""
    ends = sorted({min(values, key=values.__getitem__), max(values, key=values.__getitem__)})
    ends.sort(key=values.__getitem__)
    return " to ".join(f"{form.format(values[name])} ({name})" for name in ends)


def _roc_table(curves: Curves) -> list[list[str]]:
    """Columns of the table, each a heading and one cell per curve."""
    coarsest = max(_roc(curve).resolution for curve in curves.values())
    far = next((f for f in (FAR_TARGET, 1e-2) if f >= coarsest), 1e-1)
    table = [["pairs"], ["accuracy"], [f"TAR at FAR {far:g}"], ["AUC"]]
    for name, curve in curves.items():
        roc, accuracy, tar = _roc(curve), "", _roc(curve).tar_at(far)
        if isinstance(curve, Verification):
            accuracy = f"{100 * curve.accuracy:.2f} ± {100 * curve.accuracy_std:.2f} %"
            tar = curve.tar if far == FAR_TARGET else tar
        for column, cell in zip(
            table, [name, accuracy, f"{100 * tar:.1f} %", f"{roc.auc:.4f}"], strict=True
        ):
            column.append(cell)
    return [column for column in table if any(column[1:])]


def _add_table(figure: Figure, lines: Sequence[Line2D], table: list[list[str]]) -> None:
    """Add a legend under the axes with the columns of `table`; the last line is chance."""
    nothing = Line2D([], [], linestyle="none")
    handles = [nothing, *lines] + [nothing] * (len(table) - 1) * (len(lines) + 1)
    labels = [cell for column in table for cell in [*column, ""]]
    labels[len(lines)] = "chance"
    legend = figure.legend(
        handles, labels, loc="outside lower center", ncols=len(table), columnspacing=1.0
    )
    for heading in legend.get_texts()[:: len(lines) + 1]:
        heading.set_color(GREY)


def _training_title(losses: Series, accuracies: Mapping[str, Series]) -> str:
    """The last smoothed loss and the last accuracies."""
    title = f"Loss {_smooth(losses[1])[-1]:.3g}"
    if accuracies:
        last = {name: 100 * rates[-1] for name, (_, rates) in accuracies.items()}
        title += ", accuracy " + _span(last, "{:.2f} %")
    return title


def _draw_losses(axes: Axes, losses: Series) -> None:
    """Draw the losses as logged in a light colour, and smoothed in a dark one."""
    steps, values = losses
    axes.plot(steps, values, color=COLOURS[5], alpha=0.6, linewidth=0.8, label="as logged")
    axes.plot(steps, _smooth(values), color=COLOURS[0], marker=_marker(steps), label="smoothed")
    low, high = values.min(), _ceiling(values)
    room = 0.05 * (high - low) or 0.5
    axes.set(ylabel="loss", ylim=(low - room, high + room))
    if len(steps) > FEW:
        axes.legend(loc="upper right")


def _draw_accuracies(axes: Axes, accuracies: Mapping[str, Series]) -> None:
    """Draw each verification accuracy in percent, a dot for each measurement."""
    for name, (steps, rates) in accuracies.items():
        axes.plot(steps, 100 * rates, marker=_marker(steps), label=name)
    axes.set_ylabel("accuracy (%)")
    axes.legend(loc="best")


def _draw_learning_rate(axes: Axes, rates: Series) -> None:
    """Draw the lowest panel, which also has the step axis of the panels above."""
    axes.plot(*rates, color=GREY, linewidth=1.5, marker=_marker(rates[0]), markersize=3)
    axes.set(xlabel="step", ylabel="learning\nrate", ylim=(0, None))
    round_numbers = [1, 2, 5, 10]
    axes.yaxis.set_major_locator(MaxNLocator(2, steps=round_numbers))
    axes.xaxis.set_major_locator(MaxNLocator(8, steps=round_numbers, integer=True, min_n_ticks=1))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step:,.0f}"))


def _series(metrics: Sequence[Mapping[str, Any]], key: str) -> Series:
    """Steps and values of the lines that have a finite `key`."""
    pairs = [(line["step"], line[key]) for line in metrics if np.isfinite(line.get(key, np.nan))]
    columns = np.array(pairs, dtype=np.float64).reshape(-1, 2)
    return columns[:, 0], columns[:, 1]


def _ceiling(values: Floats) -> float:
    """The 99.5th percentile, so that a spike does not flatten the rest."""
    return float(np.percentile(values, 99.5, method="higher"))


def _smooth(values: Floats) -> Floats:
    """Centred mean over about 1/40 of the run, spikes cut; over fewer values at the ends."""
    window = np.ones(2 * (len(values) // 80) + 1)
    total = np.convolve(np.minimum(values, _ceiling(values)), window, mode="same")
    smooth: Floats = total / np.convolve(np.ones(len(values)), window, mode="same")
    return smooth


def _marker(steps: Floats) -> str:
    """Dots for few points, so that even a single one is visible."""
    return "o" if len(steps) <= FEW else ""
