"""The report's tables from a record, every cell as text."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from facescale.report.cases import IDENTITIES, MATRIX, MAX, Case
from facescale.report.published import (
    DEVICES,
    HARDWARE,
    MOST_IDENTITIES,
    THROUGHPUT,
    Published,
)
from facescale.report.record import Cell, Record

THIS = "this run"
PUBLISHED = "published, "
"""Prefix of a column's name if its figures were published by others."""


@dataclass
class Table:
    """A table of the document."""

    title: str
    columns: list[str]
    rows: list[list[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)
    figure: bytes = b""
    """PNG."""

    def is_published(self, column: int) -> bool:
        """Whether the figures of that column were published by others."""
        return self.columns[column].startswith(PUBLISHED)


@dataclass(frozen=True)
class Series:
    """The rates of one system in one case, by number of devices."""

    name: str
    rates: dict[int, float]

    @property
    def is_published(self) -> bool:
        """Whether the figures were published by others."""
        return self.name.startswith(PUBLISHED)

    def speed_up(self) -> dict[int, float]:
        """Rates relative to one device; empty if that was not measured."""
        one = self.rates.get(1)
        return {} if not one else {n: rate / one for n, rate in self.rates.items()}


def cells_of(cells: Iterable[Cell], case: Case) -> dict[int, Cell]:
    """The cells of a case by number of devices."""
    return {cell.devices: cell for cell in cells if cell.case == case.name}


def series_of(record: Record, case: Case) -> list[Series]:
    """The series to draw for a case: ours, other systems' logs, the published ones."""
    ours = {THIS: record.cells, **record.systems}
    drawn = [
        Series(name, {n: c.rate for n, c in cells_of(cells.values(), case).items() if c.rate})
        for name, cells in ours.items()
    ]
    if published := THROUGHPUT.get(case.name):
        for system in ("OneFlow", "MXNet"):
            rates = zip(DEVICES, getattr(published, system.lower()), strict=True)
            numbers = {n: rate for n, rate in rates if not isinstance(rate, str)}
            drawn.append(Series(PUBLISHED + system, numbers))
    return [series for series in drawn if series.rates]


def throughput_table(record: Record, case: Case) -> Table:
    """Samples/s on each number of devices, in the report's form."""
    ours = cells_of(record.cells.values(), case)
    others = {name: cells_of(cells.values(), case) for name, cells in record.systems.items()}
    others = {name: cells for name, cells in others.items() if cells}
    published = THROUGHPUT.get(case.name)
    batches = [published.oneflow_batch, published.mxnet_batch] if published else []
    table = Table(
        case.title,
        ["devices", "batch per device", f"{THIS}, samples/s", "lowest to highest", "speed-up"]
        + ["memory, GiB"]
        + [f"{name}, samples/s" for name in others]
        + [
            f"{PUBLISHED}{name} (batch {batch or '?'}), samples/s"
            for name, batch in zip(("OneFlow", "MXNet"), batches, strict=False)
        ],
    )
    devices = {*ours, *(n for cells in others.values() for n in cells), *DEVICES}
    for number in sorted(devices):
        cell = ours.get(number)
        row = [str(number), *_our_columns(cell, ours.get(1))]
        row += [_figure(cells.get(number)) for cells in others.values()]
        row += _published_columns(published, number)
        table.rows.append(row)
    table.commands = [cell.command for _, cell in sorted(ours.items()) if cell.command]
    table.notes = _notes(case, ours)
    return table


def _our_columns(cell: Cell | None, one: Cell | None) -> list[str]:
    """Batch, rate, range, speed-up and memory; a failure takes the place of the rate."""
    if cell is None:
        return ["", "not run", "", "", ""]
    rates = sorted(run.rate for run in cell.runs) if cell.rate else []
    speed_up = cell.rate / one.rate if cell.rate and one is not None and one.rate else None
    return [
        str(cell.batch or ""),
        _figure(cell),
        f"{rates[0]:.2f} to {rates[-1]:.2f}" if len(rates) > 1 else "",
        "" if speed_up is None else f"{speed_up:.2f}",
        "" if cell.peak_gib is None else f"{cell.peak_gib:.2f}",
    ]


def _figure(cell: Cell | None) -> str:
    """The rate, or why there is none."""
    if cell is None:
        return ""
    return f"{cell.rate:.2f}" if cell.rate is not None else cell.failure or "not run yet"


def _published_columns(published: Published | None, devices: int) -> list[str]:
    if published is None:
        return []
    if devices not in DEVICES:
        return ["", ""]
    place = DEVICES.index(devices)
    return [str(published.oneflow[place]), str(published.mxnet[place])]


def _notes(case: Case, cells: dict[int, Cell]) -> list[str]:
    """How these cells differ from the report's procedure."""
    notes = []
    batches = {cell.batch for cell in cells.values() if cell.batch}
    if case.batch != MAX and batches - {case.batch}:
        used = ", ".join(str(batch) for batch in sorted(batches))
        notes.append(f"Batch {used} here, {case.batch} in the report.")
    if case.batch == MAX:
        notes += [
            f"{cell.devices}: batch {cell.found} found in {len(cell.tries)} tries"
            + ("." if cell.memory is None else f" under {cell.memory / 2**30:g} GiB a rank.")
            for cell in cells.values()
            if cell.found
        ]
    return notes


def identities_table(record: Record) -> Table:
    """The most identities that were trained, with the published figures."""
    table = Table(
        "Most identities: Partial FC, sample rate 0.1",
        ["system", "devices", "memory of a device", "batch per device", "identities", "tries"],
    )
    for cell in record.cells.values():
        if not cell.case.endswith(IDENTITIES):
            continue
        limit = "its own" if cell.memory is None else f"{cell.memory / 2**30:g} GiB"
        answer = cell.failure or ("not run yet" if cell.found is None else f"{cell.found:,}")
        table.rows.append(
            [THIS, str(cell.devices), limit, str(cell.batch or ""), answer, str(len(cell.tries))]
        )
        if cell.command:
            table.commands.append(cell.command)
    if not table.rows:
        return table
    for entry in MOST_IDENTITIES:
        name = f"{PUBLISHED}{entry.system} ({entry.setting})"
        row = [name, str(entry.devices), f"V100, {entry.card_gib} GB"]
        table.rows.append([*row, "", f"{entry.identities:,}", ""])
    precision = record.settings.get("precision") or "the preset's precision"
    table.notes = [f"Trained in {precision} here; the published figures are of FP16."]
    return table


def all_tables(record: Record) -> list[Table]:
    """Every table that has a cell of ours or of a log."""
    named = {cell.case for cell in record.cells.values()}
    named |= {cell.case for cells in record.systems.values() for cell in cells.values()}
    tables = [
        throughput_table(record, case)
        for case in MATRIX
        if case.name in named and not case.searches_identities
    ]
    identities = identities_table(record)
    return [*tables, identities] if identities.rows else tables


PUBLISHED_NOTE = (
    f"Figures in columns marked as published were not measured here, but by the report on "
    f"{HARDWARE} in January 2021."
)
