"""Plots of `facescale bench device` as PNG."""

from collections.abc import Mapping
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from facescale.evaluation.plots import COLOURS, STYLE, WIDTH
from facescale.report.device.ceilings import head_floor_ms
from facescale.report.device.results import Results
from facescale.report.plots import legend_text, png

Bars = Mapping[str, Mapping[str, float]]
"""Value by group and by name of the bar."""


def figures(results: Results) -> list[tuple[str, bytes]]:
    """Title and PNG of each plot that has bars."""
    plots: list[tuple[str, str, Bars, bool]] = [
        ("Head alone, ms of a step", "ms", _head(results), True),
        ("Full step, images/s", "images/s", _step(results), False),
        ("Where the step's time goes", "ms of a step", _profile(results), False),
    ]
    return [(title, _draw(label, bars, log)) for title, label, bars, log in plots if bars]


def _head(results: Results) -> Bars:
    bars: dict[str, dict[str, float]] = {}
    for row in results.rows("head", rows="float32"):
        group = bars.setdefault(f"{row['identities']:,}\nat {row['rate']:g}, b{row['batch']}", {})
        group.setdefault(f"{row['walk']}, {row['products']}", row["ms"])
        if floor := head_floor_ms(results, row):
            group.setdefault("floor", floor)
    return bars


def _step(results: Results) -> Bars:
    bars: dict[str, dict[str, float]] = {}
    for row in results.rows("step", rate=0.1):
        name = f"{row['network']} {row['precision']}\nb{row['batch']}\n{row['identities']:,}"
        way = "" if row["way"] == "eager" else f", {row['way']}"
        group = bars.setdefault(name, {})
        group.setdefault(f"{row['who']}{way}", row["images_per_s"])
    return dict(list(bars.items())[:8])


def _profile(results: Results) -> Bars:
    bars: dict[str, dict[str, float]] = {}
    for row in results.rows("profile", what="operation"):
        group, name = bars.setdefault(row["who"], {}), row["name"][:40]
        if name in group or len(group) < len(COLOURS):
            group[name] = group.get(name, 0.0) + row["ms"]
    return bars


def _draw(label: str, bars: Bars, log: bool) -> bytes:
    names = list(dict.fromkeys(name for group in bars.values() for name in group))
    handles: dict[str, Any] = {}
    width = 0.8 / max(len(group) for group in bars.values())
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 4.2), layout="constrained")
        axes = figure.add_subplot(ylabel=label)
        for place, group in enumerate(bars.values()):
            for number, (name, value) in enumerate(group.items()):
                at = place + (number - (len(group) - 1) / 2) * width
                index = names.index(name)
                hatch = (None, "//", "..")[index // len(COLOURS) % 3]
                handles[name] = axes.bar(
                    at, value, width=0.92 * width, color=COLOURS[index % len(COLOURS)],
                    hatch=hatch, edgecolor="white", linewidth=0,
                )  # fmt: skip
        axes.set_xticks(range(len(bars)), list(bars), fontsize=8)
        axes.grid(axis="x", visible=False)
        if log:
            axes.set_yscale("log")
        names = list(map(legend_text, handles))
        figure.legend(handles.values(), names, loc="outside lower center", ncols=2, fontsize=8)
        return png(figure)
