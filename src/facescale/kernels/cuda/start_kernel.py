"""The kernel that gives class centres their start values."""

import triton
import triton.language as tl

from facescale.kernels.cuda.noise import child, normal, word
from facescale.kernels.cuda.rows import drawn_rows, store_rows, tile_mask


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
    """Weights of R rows; see `start.start_`."""
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
