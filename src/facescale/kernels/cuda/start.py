"""Start values of class centres on a CUDA device, as a function of (key, class, column)."""

import triton
import triton.language as tl

from facescale.kernels.cuda.head import Drawn, signed
from facescale.kernels.cuda.noise import child, normal, word
from facescale.kernels.cuda.rows import drawn_rows, store_rows, tile_mask
from facescale.kernels.cuda.tiles import TILES, power_of_2


@triton.jit(do_not_specialize=["first", "count", "key_low", "key_high", "first_class"])
def start_kernel(
    table,
    scales,
    rows,
    first,
    count,
    key_low,
    key_high,
    first_class,
    deviation,
    PARTS: tl.constexpr,
    D: tl.constexpr,
    FORMAT: tl.constexpr,
    GATHER: tl.constexpr,
    R: tl.constexpr,
    BD: tl.constexpr,
):
    """Weights of R rows; see `start_`."""
    place = tl.program_id(0) * R + tl.arange(0, R)
    row, used = drawn_rows(rows, place, first, count, GATHER)
    column = tl.arange(0, BD)
    mask = tile_mask(used, column, D, BD)
    low, high = child(word(key_low), word(key_high), first_class + row)
    numbers = normal(low[:, None], high[:, None], column.to(tl.uint32)[None, :]) * deviation
    numbers = tl.where(mask, numbers, 0.0)
    store_rows(
        numbers, table, scales, row, used, mask, column,
        key_low, key_high, first_class, 0, PARTS, D, FORMAT, False,
    )  # fmt: skip


def start_(drawn: Drawn, key: tuple[int, int], first_class: int, deviation: float) -> None:
    """Give rows that are all zero their start values, N(0, deviation) rounded to the nearest.

    Args:
        drawn: The rows.
        key: Two words of 32 bits that decide the numbers, with class and column.
        first_class: The class of row 0 of the table.
        deviation: The standard deviation.
    """
    if not drawn.count:
        return
    tile = TILES["start"]["tf32"]
    table, scales, rows = drawn.pointers()
    start_kernel[(-(-drawn.count // tile.rows),)](
        table, scales, rows, drawn.first, drawn.count, *signed(key), first_class, deviation,
        **drawn.constants(), R=tile.rows, BD=power_of_2(drawn.dim), num_warps=tile.warps,
    )  # fmt: skip
