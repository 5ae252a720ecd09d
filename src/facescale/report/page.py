"""The document: every table with its plot, as one self-contained HTML page and as Markdown."""

from base64 import b64encode
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from facescale.files import write_whole
from facescale.report.cases import IDENTITIES, MATRIX, NETWORKS
from facescale.report.compare import comparison_table
from facescale.report.plots import Points, plot_against_identities, plot_throughput
from facescale.report.record import Cell, Record, load
from facescale.report.tables import PUBLISHED_NOTE, all_tables, series_of


def write_report(record: Record, output: Path) -> list[Path]:
    """Write `report.html`, `report.md` and its PNG plots into `output`; returns the two pages."""
    tables = all_tables(record)
    titles = {case.title: case for case in MATRIX}
    for table in tables:
        case = titles.get(table.title)
        if case is not None and (series := series_of(record, case)):
            table.figure = plot_throughput(series)
    return write_pages(
        output,
        "report",
        title="Throughput and limits of face recognition training",
        tables=tables,
        figures=_figures(record),
        procedure=procedure(record.settings),
        fingerprints=[("", record.fingerprint)],
        published=PUBLISHED_NOTE,
    )


def write_comparison(first: Path, second: Path, output: Path) -> list[Path]:
    """Write `comparison.html` and `comparison.md` of two results.json into `output`.

    Raises:
        FileNotFoundError: One of them is missing.
        ValueError: One of them is not a benchmark's results.
    """
    records = [load(first), load(second)]
    return write_pages(
        output,
        "comparison",
        title=f"{first} and {second}",
        tables=[comparison_table(*records)],
        figures=[],
        procedure=[
            f"{name}: " + " ".join(procedure(record.settings))
            for name, record in zip("AB", records, strict=True)
        ],
        fingerprints=[
            (name, record.fingerprint) for name, record in zip("AB", records, strict=True)
        ],
        published="",
    )


def procedure(settings: dict[str, Any]) -> list[str]:
    """How the figures were measured, in sentences, with the differences from the report."""
    data = settings["data"]
    sentences = [
        f"Each case: {counted(settings['runs'], 'run')} of {settings['iterations']} iterations, "
        f"{settings['pause_s']:g} s apart. The rate of a run is the mean of the rates logged over "
        f"its last {settings['counted']} iterations; the iterations before are warm-up. The figure "
        "is the median of the runs.",
        "Each run is a torchrun of its own; on the CPU a device is a rank with "
        f"{counted(settings['threads'], 'thread')}.",
        "Data: "
        + "; ".join(
            f"{name} {'from ' + data[name] if name in data else 'synthetic'}"
            for name in sorted({network.dataset for network in NETWORKS.values()})
        )
        + ". Synthetic images and labels are random. The numbers of identities are those "
        "of the real data sets.",
    ]
    different = [
        f"{counted(settings[name], word)} in place of {usual}"
        for name, word, usual in (("runs", "run", 5), ("iterations", "iteration", 150))
        if settings[name] != usual
    ]
    if settings["batch"] is not None:
        different.append(f"batch {settings['batch']} in place of 64 and 256")
    for network, own in settings.get("own", {}).items():
        numbers = " and ".join(f"{name} {number}" for name, number in own.items())
        different.append(f"{NETWORKS[network].title} with {numbers}")
    if different:
        sentences.append(f"Different from the report: {'; '.join(different)}.")
    return sentences


def counted(number: int, thing: str) -> str:
    """`1 run`, `5 runs`."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def _figures(record: Record) -> list[tuple[str, bytes]]:
    """Title and PNG of the plots against the number of identities, if there are points."""
    rates: dict[str, list[tuple[float, float]]] = {}
    memory: dict[str, list[tuple[float, float]]] = {}
    for cell in record.cells.values():
        if cell.case.endswith(IDENTITIES):
            tried = [(t.number, t.peak_gib) for t in cell.tries if t.number and t.peak_gib]
            memory.setdefault(f"{_setting(cell)}, searched", []).extend(tried)
        elif cell.num_classes and cell.rate and not cell.case.endswith("/max"):
            rates.setdefault(_setting(cell), []).append((cell.num_classes, cell.rate))
            if cell.peak_gib:
                memory.setdefault(_setting(cell), []).append((cell.num_classes, cell.peak_gib))
    return [
        (title, plot_against_identities(label, _drawable(lines)))
        for title, label, lines in (
            ("Throughput against the number of identities", "samples/s", rates),
            ("Memory against the number of identities", "GiB of rank 0", memory),
        )
        if _drawable(lines)
    ]


def _setting(cell: Cell) -> str:
    """Name of a line: what its points have in common."""
    network, mode = cell.case.split("/")[:2]
    ranks = "1 device" if cell.devices == 1 else f"{cell.devices} devices"
    return f"{network.split('_')[1]}, {mode.replace('_', ' ')}, batch {cell.batch}, {ranks}"


def _drawable(lines: dict[str, list[tuple[float, float]]]) -> dict[str, Points]:
    """The lines with at least two numbers of identities."""
    return {name: points for name, points in lines.items() if len({x for x, _ in points}) > 1}


def write_pages(output: Path, name: str, **content: Any) -> list[Path]:
    """Render both pages. HTML contains its plots, Markdown refers to PNG files beside it."""
    output.mkdir(parents=True, exist_ok=True)
    images: dict[bytes, str] = {}
    for figure in [t.figure for t in content["tables"]] + [png for _, png in content["figures"]]:
        if figure and figure not in images:
            images[figure] = f"{name}-{len(images) + 1}.png"
            write_whole(output / images[figure], [figure])
    pages = []
    for suffix in ("html", "md"):
        page = output / f"{name}.{suffix}"
        template = environment().get_template(f"report.{suffix}")
        write_whole(page, [template.render(images=images, **content).encode()])
        pages.append(page)
    return pages


def environment() -> Environment:
    """The templates of this room; `data_uri` puts a PNG into a page."""
    made = Environment(
        loader=PackageLoader("facescale.report"),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["data_uri"] = _data_uri
    return made


def _data_uri(png: bytes) -> str:
    return f"data:image/png;base64,{b64encode(png).decode()}"
