"""Pictures of a data set as PNG: how many images its identities have, and some of its faces."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from facescale.data.images import IMAGE_SIZE, decode
from facescale.datasets.inspect import Inspection
from facescale.datasets.subset import shuffled
from facescale.evaluation.plots import COLOURS, GREY, INK, STYLE, WIDTH, save
from facescale.files import write_whole

PEOPLE, IMAGES = 10, 8
"""Rows and columns of a contact sheet."""

_BINS = 60
_WIDE = 30  # times the median, from which on numbers of images are shown by their logarithm
_GAP, _MARGIN, _TITLE, _SIZE = 4, 132, 40, 14  # pixels
_MAX_NAME = 17


def plot_images_per_identity(path: Path, found: Inspection) -> None:
    """Draw how many identities have how many images, into a PNG."""
    counts = found.counts[found.counts > 0]
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
        axes = figure.add_subplot(xlabel="images of an identity", ylabel="identities")
        people = "identity" if len(counts) == 1 else "identities"
        title = f"{found.found.num_images:,} images of {len(counts):,} {people}"
        if len(counts):
            median, most = float(np.median(counts)), int(counts.max())
            is_wide = most > _WIDE * median
            axes.hist(counts, _edges(int(counts.min()), most, is_wide), color=COLOURS[0])
            axes.set(xscale="log" if is_wide else "linear", ymargin=0.1)
            axes.axvline(median, color=COLOURS[1], linestyle="--", linewidth=1.2)
            title += f", median {median:g}"
        axes.set_title(title)
        if found.num_empty:
            axes.set_xlabel(f"images of an identity; {found.num_empty:,} more have none")
        axes.grid(axis="x", visible=False)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
        if axes.get_xscale() == "linear":
            axes.xaxis.set_major_locator(MaxNLocator(10, integer=True))
        save(figure, path)


def _edges(least: int, most: int, is_wide: bool) -> list[float]:
    """Borders of bins at half numbers: as many whole ones in each, or twice as many in the next."""
    if is_wide:
        edges: NDArray[Any] = 2.0 ** np.arange(np.log2(least) // 1, np.log2(most) // 1 + 2) - 0.5
    else:
        least, most = (least, most) if most - least >= 4 else (max(1, least - 2), most + 2)
        width = -(-(most + 1 - least) // _BINS)
        edges = np.arange(least, most + 1 + width, width) - 0.5
    borders: list[float] = edges.tolist()
    return borders


def draw_contact_sheet(path: Path, found: Inspection, seed: int = 0) -> None:
    """Draw images of random identities, a row each, into a PNG; a function of the seed."""
    with_images = np.flatnonzero(found.counts)
    people = with_images[shuffled(len(with_images), seed, 0)[:PEOPLE]]
    columns = int(min(IMAGES, found.counts[people].max(initial=1)))
    size = IMAGE_SIZE + _GAP
    sheet = Image.new("RGB", (_MARGIN + columns * size, _TITLE + len(people) * size), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(_SIZE)
    title = f"{len(people)} of {len(with_images):,} identities, up to {columns} images of each"
    pen.text((_GAP, 10), title, fill=INK, font=font)
    for row, label in enumerate(people.tolist()):
        top = _TITLE + row * size
        pen.multiline_text((_GAP, top + 8), _caption(found, label), fill=INK, font=font, spacing=5)
        for column, index in enumerate(_some_of(found, label, columns, seed)):
            place = (_MARGIN + column * size, top)
            try:
                face = decode(found.dataset.read(index).encoded)
                sheet.paste(Image.fromarray(face), place)
            except (ValueError, OSError):
                corner = (place[0] + IMAGE_SIZE - 1, top + IMAGE_SIZE - 1)
                pen.rectangle((place, corner), outline=GREY)
                pen.text((place[0] + 20, top + 48), "unreadable", fill=GREY, font=font)
    file = io.BytesIO()
    sheet.save(file, "PNG")
    write_whole(path, [file.getvalue()])


def _some_of(found: Inspection, label: int, count: int, seed: int) -> list[int]:
    mine: NDArray[np.int64] = np.flatnonzero(found.labels == label)
    some: list[int] = mine[shuffled(len(mine), seed, 1, label)[:count]].tolist()
    return some


def _caption(found: Inspection, label: int) -> str:
    images = "1 image" if found.counts[label] == 1 else f"{found.counts[label]:,} images"
    lines = [f"label {label}", images]
    if found.names is not None:
        name = "".join(c if c.isascii() and c.isprintable() else "?" for c in found.names[label])
        lines.insert(0, name if len(name) <= _MAX_NAME else f"{name[: _MAX_NAME - 2]}..")
    return "\n".join(lines)
