"""The plots of the report as PNG: bars by number of devices, and figures against identities."""

import io
from collections.abc import Mapping, Sequence

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from PIL import Image

from facescale.evaluation.plots import COLOURS, GREY, STYLE, WIDTH, rendered
from facescale.report.tables import PUBLISHED, THIS, Series

_COMPARABLE = 20.0  # rates within this factor share an axis; bars of others would be invisible
Points = Sequence[tuple[float, float]]


def plot_throughput(series: Sequence[Series]) -> bytes:
    """Bars of samples/s for each number of devices, and the speed-up over one device; PNG."""
    ours = [one for one in series if not one.is_published]
    others = [one for one in series if one.is_published]
    panels = [list(series)] if _comparable(series) else [ours, others]
    colour = _colours(series)
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.1), layout="constrained")
        widths = [1.0] * len(panels) + [1.0]
        axes = figure.subplots(1, len(panels) + 1, width_ratios=widths)
        for place, shown in zip(axes, panels, strict=False):
            _draw_bars(place, shown, colour)
        axes[0].set_ylabel("samples/s")
        if len(panels) == 2:
            axes[0].set_title("here", fontsize=10)
            axes[1].set_title("published", fontsize=10)
        _draw_speed_up(axes[-1], series, colour)
        handles, labels = {}, []
        for place in axes[:-1]:
            for handle, label in zip(*place.get_legend_handles_labels(), strict=True):
                handles[label] = handle
        labels = list(handles)
        figure.legend(
            handles.values(), labels, loc="outside lower center", ncols=min(4, len(labels))
        )
        return png(figure)


def _colours(series: Sequence[Series]) -> dict[str, str]:
    """One colour per system, the same in every plot: ours, the report's two, then any others."""
    known = [THIS, f"{PUBLISHED}OneFlow", f"{PUBLISHED}MXNet"]
    names = known + [one.name for one in series if one.name not in known]
    return {name: COLOURS[place % len(COLOURS)] for place, name in enumerate(names)}


def _comparable(series: Sequence[Series]) -> bool:
    """Whether all rates are visible on one axis."""
    tops = [max(one.rates.values()) for one in series]
    return max(tops) <= _COMPARABLE * min(tops)


def _draw_bars(axes: Axes, series: Sequence[Series], colour: Mapping[str, str]) -> None:
    devices = sorted({number for one in series for number in one.rates})
    width = 0.8 / max(1, len(series))
    for place, one in enumerate(series):
        offset = (place - (len(series) - 1) / 2) * width
        shown = [n for n in devices if n in one.rates]
        axes.bar(
            [devices.index(n) + offset for n in shown],
            [one.rates[n] for n in shown],
            width=0.92 * width,
            color=colour[one.name],
            hatch="//" if one.is_published else None,
            edgecolor="white",
            linewidth=0,
            label=one.name,
        )
    axes.set_xticks(range(len(devices)), [str(n) for n in devices])
    axes.set_xlabel("devices")
    axes.set_ylim(bottom=0)
    axes.grid(axis="x", visible=False)
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda rate, _: f"{rate:,g}"))


def _draw_speed_up(axes: Axes, series: Sequence[Series], colour: Mapping[str, str]) -> None:
    most = 1
    for one in series:
        points = sorted(one.speed_up().items())
        if not points:
            continue
        most = max(most, points[-1][0])
        style = "--" if one.is_published else "-"
        axes.plot(
            *zip(*points, strict=True), style, marker="o", markersize=4, color=colour[one.name]
        )
    axes.plot([1, most], [1, most], linestyle=":", linewidth=1, color=GREY)
    axes.annotate("linear", (most, most), ha="right", va="bottom", color=GREY, fontsize=8)
    axes.set(xlabel="devices", ylim=(0, None))
    axes.set_title("speed-up", fontsize=10)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))


def plot_against_identities(ylabel: str, lines: Mapping[str, Points]) -> bytes:
    """`ylabel` against the number of identities, one line per setting; PNG."""
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.2), layout="constrained")
        axes = figure.add_subplot(xscale="log", xlabel="identities", ylabel=ylabel)
        markers = "os^Dvp"
        for place, (name, points) in enumerate(lines.items()):
            marker = markers[place % len(markers)]
            axes.plot(*zip(*sorted(points), strict=True), marker=marker, markersize=5, label=name)
        axes.margins(y=0.1)
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.xaxis.set_minor_formatter(NullFormatter())
        figure.legend(loc="outside lower center", ncols=2)
        return png(figure)


def legend_text(name: str) -> str:
    """A name as it is: matplotlib would read formulas in it, and leave out what begins with `_`."""
    shown = name.replace("$", r"\$")
    return f" {shown}" if shown.startswith("_") else shown


def png(figure: Figure) -> bytes:
    """The figure as a PNG file with a palette: a third of the size, colours within 10 of 255."""
    small = io.BytesIO()
    image = Image.open(io.BytesIO(rendered(figure, "png")), formats=["PNG"]).convert("RGB")
    image.quantize(256, Image.Quantize.MAXCOVERAGE).save(small, "PNG", optimize=True)
    return small.getvalue()
