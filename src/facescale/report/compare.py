"""Two benchmarks side by side: two versions, or two machines."""

from facescale.report.cases import IDENTITIES
from facescale.report.record import Cell, Record
from facescale.report.tables import Table


def comparison_table(first: Record, second: Record) -> Table:
    """All cells of both, with B as a multiple of A."""
    table = Table(
        "A and B",
        ["case", "devices", "batch A", "batch B", "A", "B", "B / A", "GiB A", "GiB B"],
        notes=[
            "Samples/s, or identities in the search for the most identities. If the batches "
            "differ, the ratio compares different work."
        ],
    )
    for name in {**first.cells, **second.cells}:
        pair = [first.cells.get(name), second.cells.get(name)]
        known = next(cell for cell in pair if cell is not None)
        values = [None if cell is None else figure_of(cell) for cell in pair]
        table.rows.append(
            [
                name.split(" on ")[0],
                name.split(" on ")[1] if known.memory else str(known.devices),
                *("" if cell is None else str(cell.batch or "") for cell in pair),
                *(_text(cell, value) for cell, value in zip(pair, values, strict=True)),
                f"{values[1] / values[0]:.3f}" if values[0] and values[1] else "",
                *(
                    "" if cell is None or cell.peak_gib is None else f"{cell.peak_gib:.2f}"
                    for cell in pair
                ),
            ]
        )
    return table


def figure_of(cell: Cell) -> float | None:
    """The figure of a cell: its rate, or the most identities."""
    return cell.found if cell.case.endswith(IDENTITIES) else cell.rate


def _text(cell: Cell | None, value: float | None) -> str:
    if cell is None:
        return "not run"
    if value is None:
        return cell.failure or "not run yet"
    return f"{value:,.0f}" if cell.case.endswith(IDENTITIES) else f"{value:.2f}"
