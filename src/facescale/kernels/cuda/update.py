"""Kernels that move the class centres: their gradient, and torch.optim.SGD's rule upon it."""

import triton
import triton.language as tl

from facescale.kernels.cuda.rows import dot, drawn_rows, load_rows, store_rows, tile_mask


@triton.jit
def learn_(
    gradient,
    weight,
    table,
    scales,
    row,
    used,
    mask,
    column,
    momentum,
    lr,
    key_low,
    key_high,
    first_class,
    PARTS: tl.constexpr,
    D: tl.constexpr,
    FORMAT: tl.constexpr,
):
    """Store v = momentum v + gradient and w -= lr v for a tile; without momentum, v = gradient."""
    velocity = gradient
    if PARTS == 2:
        velocity += momentum * load_rows(
            table, scales, row, used, mask, column, 1, PARTS, D, FORMAT
        )
    tl.debug_barrier()  # all threads of the program have read what is overwritten now
    if PARTS == 2:
        store_rows(
            velocity, table, scales, row, used, mask, column,
            key_low, key_high, first_class, 1, PARTS, D, FORMAT, True,
        )  # fmt: skip
    weight -= lr * velocity
    store_rows(
        weight, table, scales, row, used, mask, column,
        key_low, key_high, first_class, 0, PARTS, D, FORMAT, True,
    )  # fmt: skip


@triton.jit
def product_tile(
    product,
    batch,
    place,
    used,
    column,
    num_samples,
    D: tl.constexpr,
    R: tl.constexpr,
    B: tl.constexpr,
    BD: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Tile (R, BD) of product @ batch."""
    acc = tl.zeros((R, BD), tl.float32)
    for start in range(0, num_samples, B):
        sample = start + tl.arange(0, B)
        here = sample < num_samples
        at = product + place.to(tl.int64)[:, None] * num_samples + sample[None, :]
        share = tl.load(at, mask=used[:, None] & here[None, :], other=0.0)
        exists = tile_mask(here, column, D, BD)
        unit = tl.load(batch + sample[:, None] * D + column[None, :], mask=exists, other=0.0)
        acc = dot(share, unit, acc, PRECISION)
    return acc


@triton.jit(do_not_specialize=["first", "count", "key_low", "key_high", "first_class"])
def update_kernel(
    table,
    scales,
    rows,
    product,
    batch,
    radial,
    bad,
    gradient,
    first,
    count,
    num_samples,
    momentum,
    decay,
    lr,
    key_low,
    key_high,
    first_class,
    PARTS: tl.constexpr,
    D: tl.constexpr,
    FORMAT: tl.constexpr,
    GATHER: tl.constexpr,
    LEARN: tl.constexpr,
    PRECISION: tl.constexpr,
    R: tl.constexpr,
    B: tl.constexpr,
    BD: tl.constexpr,
):
    """Gradient of R rows and BD columns, learnt at once or stored; see `head.update_`."""
    if LEARN and tl.load(bad) != 0:
        return
    wide = tl.cdiv(D, BD)
    place = tl.program_id(0) // wide * R + tl.arange(0, R)
    column = tl.program_id(0) % wide * BD + tl.arange(0, BD)
    row, used = drawn_rows(rows, place, first, count, GATHER)
    acc = product_tile(product, batch, place, used, column, num_samples, D, R, B, BD, PRECISION)
    mask = tile_mask(used, column, D, BD)
    weight = load_rows(table, scales, row, used, mask, column, 0, PARTS, D, FORMAT)
    # Only what turns a centre counts: its length does not change a cosine.
    pull = tl.load(radial + place, mask=used, other=0.0)
    if LEARN:
        acc += (decay - pull)[:, None] * weight
        learn_(
            acc, weight, table, scales, row, used, mask, column,
            momentum, lr, key_low, key_high, first_class, PARTS, D, FORMAT,
        )  # fmt: skip
    else:
        acc -= pull[:, None] * weight
        exists = tile_mask(place < count, column, D, BD)
        tl.store(gradient + place.to(tl.int64)[:, None] * D + column[None, :], acc, mask=exists)


@triton.jit(do_not_specialize=["first", "count", "key_low", "key_high", "first_class"])
def apply_kernel(
    table,
    scales,
    rows,
    bad,
    gradient,
    first,
    count,
    momentum,
    decay,
    lr,
    key_low,
    key_high,
    first_class,
    PARTS: tl.constexpr,
    D: tl.constexpr,
    FORMAT: tl.constexpr,
    GATHER: tl.constexpr,
    R: tl.constexpr,
    BD: tl.constexpr,
):
    """Learn a gradient of R rows and BD columns that `update_kernel` stored."""
    if tl.load(bad) != 0:
        return
    wide = tl.cdiv(D, BD)
    place = tl.program_id(0) // wide * R + tl.arange(0, R)
    column = tl.program_id(0) % wide * BD + tl.arange(0, BD)
    row, used = drawn_rows(rows, place, first, count, GATHER)
    mask = tile_mask(used, column, D, BD)
    weight = load_rows(table, scales, row, used, mask, column, 0, PARTS, D, FORMAT)
    at = gradient + place.to(tl.int64)[:, None] * D + column[None, :]
    total = tl.load(at, mask=mask, other=0.0) + decay * weight
    learn_(
        total, weight, table, scales, row, used, mask, column,
        momentum, lr, key_low, key_high, first_class, PARTS, D, FORMAT,
    )  # fmt: skip
