"""The kernel that draws the rows of a step, in one launch; `Permutation` of facescale/random.py."""

import triton
import triton.language as tl

from facescale import random
from facescale.kernels.cuda.noise import bits, word

STRIDE = tl.constexpr(random.STRIDE)
ROUNDS = tl.constexpr(random.Permutation.ROUNDS)
NONE = tl.constexpr(-1)


@triton.jit
def shift(low, high, step: tl.constexpr, other, side):
    """How far a round moves along a side of the grid; int64 in [0, side)."""
    drawn = bits(low, high, other.to(tl.uint32) + ((step * STRIDE) & 0xFFFFFFFF))
    return (drawn.to(tl.int64) * side) >> 32


@triton.jit
def permute_once(place, rows, columns, low, high, INVERSE: tl.constexpr):
    """One pass of the Feistel network over a grid of rows and columns, or its inverse; int64."""
    row = place // columns
    column = place - row * columns
    for turn in tl.static_range(ROUNDS):
        if INVERSE:
            column += columns - shift(low, high, 2 * (ROUNDS - 1 - turn) + 1, row, columns)
            column = tl.where(column >= columns, column - columns, column)
            row += rows - shift(low, high, 2 * (ROUNDS - 1 - turn), column, rows)
            row = tl.where(row >= rows, row - rows, row)
        else:
            row += shift(low, high, 2 * turn, column, rows)
            row = tl.where(row >= rows, row - rows, row)
            column += shift(low, high, 2 * turn + 1, row, columns)
            column = tl.where(column >= columns, column - columns, column)
    return row * columns + column


@triton.jit
def permute(place, size, rows, columns, walks, low, high, INVERSE: tl.constexpr):
    """Where the permutation of [0, size) sends each place; what falls outside is sent on."""
    place = permute_once(place, rows, columns, low, high, INVERSE)
    for _ in range(walks - 1):
        again = permute_once(place, rows, columns, low, high, INVERSE)
        place = tl.where(place >= size, again, place)
    return place


@triton.jit
def first_of_equals(own, number, sample, num_own, S: tl.constexpr):
    """The first of all samples that has the same number; (S,)."""
    first = sample
    for start in range(0, num_own, S):
        other = start + tl.arange(0, S)
        numbers = tl.load(own + other, mask=other < num_own, other=NONE)
        equal = (numbers[None, :] == number[:, None]) & (other < num_own)[None, :]
        first = tl.minimum(first, tl.min(tl.where(equal, other[None, :], sample[:, None]), 1))
    return first


@triton.jit
def draw_rows(drawn, size, rows, columns, walks, num_sample, low, high, slot):
    """Store the rows of some slots."""
    asked = tl.where(slot < num_sample, slot, 0).to(tl.int64)
    row = permute(asked, size, rows, columns, walks, low, high, False)
    tl.store(drawn + slot, row, mask=slot < num_sample)


@triton.jit
def find_places(
    own, drawn, place, size, rows, columns, walks, num_sample, num_own, low, high, sample,
    S: tl.constexpr,
):  # fmt: skip
    """Store the places of S samples, and in the last slots the rows that were not drawn."""
    exists = sample < num_own
    number = tl.load(own + sample, mask=exists, other=NONE)
    here = (number >= 0) & (number < size)
    at = permute(tl.where(here, number, 0), size, rows, columns, walks, low, high, True)
    first = first_of_equals(own, number, sample, num_own, S)
    missing = here & (at >= num_sample)
    at = tl.where(here, tl.where(missing, num_sample + first, at), NONE)
    tl.store(place + sample, at, mask=exists)
    extra = tl.where(missing & (first == sample), number, NONE)
    tl.store(drawn + num_sample + sample, extra, mask=exists)


@triton.jit(
    do_not_specialize=[
        "num_rows", "num_sample", "num_own", "side_rows", "side_columns", "walks", "key_low",
        "key_high",
    ]
)  # fmt: skip
def draw_kernel(
    own,
    drawn,
    place,
    num_rows,
    num_sample,
    num_own,
    side_rows,
    side_columns,
    walks,
    key_low,
    key_high,
    N: tl.constexpr,
    S: tl.constexpr,
):
    """N drawn rows; or places of S samples, and rows of classes that were not drawn."""
    low, high = word(key_low), word(key_high)
    size = num_rows.to(tl.int64)
    rows, columns = side_rows.to(tl.int64), side_columns.to(tl.int64)
    blocks = tl.cdiv(num_sample, N)
    if tl.program_id(0) < blocks:
        slot = tl.program_id(0) * N + tl.arange(0, N)
        draw_rows(drawn, size, rows, columns, walks, num_sample, low, high, slot)
    else:
        sample = (tl.program_id(0) - blocks) * S + tl.arange(0, S)
        find_places(
            own, drawn, place, size, rows, columns, walks, num_sample, num_own, low, high,
            sample, S,
        )  # fmt: skip
