"""The rates that a device reached, and the floors that follow from them."""

from typing import Any

from facescale.report.device.results import Results

PRODUCTS = {"tf32x3": ("tf32", 3.0), "float32": ("float32", 1.0)}
"""Precision of the measured product, and how many of them one takes."""


def copy_rate(results: Results) -> float | None:
    """Bytes/s of a copy, read and written."""
    row = results.first("ceilings", what="copy")
    return None if row is None else float(row["rate"])


def product_rate(results: Results, precision: str) -> float | None:
    """FLOP/s of the fastest product in a precision."""
    name, times = PRODUCTS.get(precision, (precision, 1.0))
    rates = [row["rate"] for row in results.rows("ceilings", what="product", precision=name)]
    return max(rates) / times if rates else None


def head_floor_ms(results: Results, row: dict[str, Any]) -> float | None:
    """Least ms of a head's step: of its bytes at the copy's rate, or of its products."""
    copy = copy_rate(results)
    if copy is None:
        return None
    products = product_rate(results, row["products"])
    compute = row["flop"] / products if products else 0.0
    return float(1e3 * max(row["bytes"] / copy, compute))
