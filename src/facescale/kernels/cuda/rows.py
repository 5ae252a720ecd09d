"""Device functions that load and store rows of the table of class centres, and multiply tiles.

The table is (rows, parts, width): the weight, then the momentum if there is one. `FORMAT` says how
a number is stored: "float32", "bfloat16", or "int8" with a float32 scale in the last four bytes of
each part. `table` points to the stored type, `scales` to the same memory as float32.
"""

import os

import triton
import triton.language as tl

from facescale.kernels.cuda.noise import bits, child, uniform, word

INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")
LEVELS = tl.constexpr(127.0)  # of int8, on each side of 0
ROOM = tl.constexpr(1.25)  # a new scale leaves this much above the row's largest number


@triton.jit
def dot(a, b, acc, PRECISION: tl.constexpr):
    """Add a @ b to `acc`, with operands rounded as `PRECISION` says: "tf32x3", "tf32", "bf16"."""
    if PRECISION == "bf16":
        a = a.to(tl.bfloat16)
        b = b.to(tl.bfloat16)
        if INTERPRETED:  # its product of bfloat16 multiplies bit patterns
            a = a.to(tl.float32)
            b = b.to(tl.float32)
        acc = tl.dot(a, b, acc)
    else:
        acc = tl.dot(a, b, acc, input_precision=PRECISION)
    return acc


@triton.jit
def drawn_rows(rows, place, first, count, GATHER: tl.constexpr):
    """Row numbers (int64) of places of the sample, and which of the places are in use."""
    used = place < count
    if GATHER:
        row = tl.load(rows + place, mask=used, other=-1)
        used = row >= 0
        row = tl.where(used, row, 0)
    else:
        row = first + place.to(tl.int64)
    return row, used


@triton.jit
def tile_mask(used, column, D: tl.constexpr, BD: tl.constexpr):
    """Elements of a tile that exist; columns are not asked for where `BD` divides `D`."""
    if D % BD == 0:
        mask = used[:, None] & (column >= 0)[None, :]
    else:
        mask = used[:, None] & (column < D)[None, :]
    return mask


@triton.jit
def load_rows(
    table,
    scales,
    row,
    used,
    mask,
    column,
    PART: tl.constexpr,
    PARTS: tl.constexpr,
    D: tl.constexpr,
    FORMAT: tl.constexpr,
):
    """A tile (rows, columns) of weights (`PART` 0) or momentum (1) as float32; 0 where masked."""
    line = row * PARTS + PART
    if FORMAT == "int8":
        at = table + (line * (D + 4))[:, None] + column[None, :]
        scale = tl.load(scales + line * (D // 4 + 1) + D // 4, mask=used, other=0.0)
        numbers = tl.load(at, mask=mask, other=0).to(tl.float32) * scale[:, None]
    else:
        at = table + (line * D)[:, None] + column[None, :]
        numbers = tl.load(at, mask=mask, other=0.0).to(tl.float32)
    return numbers


@triton.jit
def round_bfloat16(numbers, noise, RANDOM: tl.constexpr):
    """Round up or down by 32 random bits each, else to the nearest, and to even in the middle."""
    exact = numbers.to(tl.uint32, bitcast=True)
    more = noise & 0xFFFF if RANDOM else 0x7FFF + ((exact >> 16) & 1)
    # The NaN of a GPU has all bits set: one more would make it a 0.
    exact = tl.where(numbers == numbers, exact + more, exact)
    return (exact & 0xFFFF0000).to(tl.float32, bitcast=True).to(tl.bfloat16)


@triton.jit
def fit_int8(numbers, mask, before, noise, RANDOM: tl.constexpr):
    """Levels and scales for rows that had the scales `before`.

    A scale stays as long as the row fits into it and fills half of it, so that a number that does
    not change stays on its level. A row that is not finite gets a scale that is not.
    """
    largest = tl.max(tl.where(mask, tl.abs(numbers), 0.0), 1)
    largest = tl.where(tl.max((numbers != numbers).to(tl.int32), 1) > 0, float("nan"), largest)
    needed = tl.div_rn(largest, tl.zeros_like(largest) + LEVELS)
    scale = tl.where((needed <= before) & (needed >= before * 0.5), before, ROOM * needed)
    divisor = tl.where(scale > 0, scale, 1.0)[:, None]
    level = tl.div_rn(numbers, divisor + tl.zeros_like(numbers))
    level = tl.floor(level + (uniform(noise) if RANDOM else 0.5))
    return tl.minimum(tl.maximum(level, -LEVELS), LEVELS).to(tl.int8), scale


@triton.jit
def store_rows(
    numbers,
    table,
    scales,
    row,
    used,
    mask,
    column,
    key_low,
    key_high,
    first_class,
    PART: tl.constexpr,
    PARTS: tl.constexpr,
    D: tl.constexpr,
    FORMAT: tl.constexpr,
    RANDOM: tl.constexpr,
):
    """Store a tile as `load_rows` loads it; of int8 rows it holds all columns.

    Where the format has fewer bits, numbers are rounded at random if `RANDOM`, else to the nearest.
    """
    line = row * PARTS + PART
    if FORMAT == "float32":
        tl.store(table + (line * D)[:, None] + column[None, :], numbers, mask=mask)
    else:
        low, high = child(word(key_low), word(key_high), first_class + row)
        noise = bits(low[:, None], high[:, None], (column + PART * D).to(tl.uint32)[None, :])
        if FORMAT == "bfloat16":
            rounded = round_bfloat16(numbers, noise, RANDOM)
            tl.store(table + (line * D)[:, None] + column[None, :], rounded, mask=mask)
        else:
            scale_at = scales + line * (D // 4 + 1) + D // 4
            before = tl.load(scale_at, mask=used, other=0.0)
            level, scale = fit_int8(numbers, mask, before, noise, RANDOM)
            tl.store(table + (line * (D + 4))[:, None] + column[None, :], level, mask=mask)
            tl.debug_barrier()  # all threads of the program have read the scale that was there
            tl.store(scale_at, scale, mask=used)
