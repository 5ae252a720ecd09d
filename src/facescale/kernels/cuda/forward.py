"""Kernels of the head's forward pass: logits of the drawn rows, and the statistics they leave."""

import triton
import triton.language as tl

from facescale.kernels.cuda.rows import dot, drawn_rows, load_rows, tile_mask

LOWEST = tl.constexpr(-1e30)  # below every logit
SMALLEST_SQUARE = tl.constexpr(1e-24)  # of a centre's length, as torch.nn.functional.normalize


@triton.jit
def cosine_tile(
    table,
    scales,
    batch,
    row,
    used,
    sample,
    num_samples,
    PARTS: tl.constexpr,
    D: tl.constexpr,
    BD: tl.constexpr,
    R: tl.constexpr,
    B: tl.constexpr,
    FORMAT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Cosines (R, B) of rows and unit embeddings, and 1 / length of the rows (R,)."""
    acc = tl.zeros((R, B), tl.float32)
    square = tl.zeros((R,), tl.float32)
    for start in range(0, D, BD):
        column = start + tl.arange(0, BD)
        mask = tile_mask(used, column, D, BD)
        weight = load_rows(table, scales, row, used, mask, column, 0, PARTS, D, FORMAT)
        exists = tile_mask(sample < num_samples, column, D, BD)
        unit = tl.load(batch + sample[:, None] * D + column[None, :], mask=exists, other=0.0)
        square += tl.sum(weight * weight, 1)
        acc = dot(weight, tl.trans(unit), acc, PRECISION)
    inverse = 1 / tl.sqrt(tl.maximum(square, SMALLEST_SQUARE))
    return acc * inverse[:, None], inverse


@triton.jit
def softmax_parts(logit, counts, limit):
    """Highest logit that counts, 0 above `limit`, and sum of exponentials relative to it; (B,)."""
    logit = tl.where(logit > limit, 0.0, logit)
    highest = tl.max(tl.where(counts, logit, -float("inf")), 0)
    # Where none counts, a finite one, and a sum of 0.
    highest = tl.where(highest == -float("inf"), LOWEST, highest)
    return highest, tl.sum(tl.where(counts, tl.exp(logit - highest[None, :]), 0.0), 0)


@triton.jit(do_not_specialize=["first", "count", "num_kept"])
def forward_kernel(
    table,
    scales,
    rows,
    batch,
    own_place,
    inverse,
    logits,
    own_cosine,
    peak,
    total,
    first,
    count,
    num_kept,
    num_samples,
    scale,
    limit,
    PARTS: tl.constexpr,
    D: tl.constexpr,
    FORMAT: tl.constexpr,
    GATHER: tl.constexpr,
    STATISTICS: tl.constexpr,
    PRECISION: tl.constexpr,
    R: tl.constexpr,
    B: tl.constexpr,
    BD: tl.constexpr,
):
    """Logits of R rows and B samples, the fast axis: rows come from memory once."""
    tiles = tl.cdiv(num_samples, B)
    block, tile = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    place = block * R + tl.arange(0, R)
    sample = tile * B + tl.arange(0, B)
    here = sample < num_samples
    row, used = drawn_rows(rows, place, first, count, GATHER)
    cosine, length = cosine_tile(
        table, scales, batch, row, used, sample, num_samples,
        PARTS, D, BD, R, B, FORMAT, PRECISION,
    )  # fmt: skip
    logit = cosine * scale
    at = logits + place.to(tl.int64)[:, None] * num_samples + sample[None, :]
    tl.store(at, logit, mask=(place < num_kept)[:, None] & here[None, :])
    if STATISTICS:
        length = tl.where(used, length, 0.0)  # 0: not in use
        tl.store(inverse + place, length, mask=(place < count) & (tile == 0))
        own = tl.load(own_place + sample, mask=here, other=-1).to(tl.int32)
        own = own[None, :] == place[:, None]
        found = tl.max(own.to(tl.int32), 0) > 0
        tl.store(own_cosine + sample, tl.sum(tl.where(own, cosine, 0.0), 0), mask=found)
        highest, terms = softmax_parts(logit, used[:, None] & (own == 0), limit)
        tl.store(peak + block * num_samples + sample, highest, mask=here)
        tl.store(total + block * num_samples + sample, terms, mask=here)


@triton.jit(do_not_specialize=["num_blocks"])
def join_kernel(peak, total, log_sum, num_blocks, num_samples, P: tl.constexpr, B: tl.constexpr):
    """Join the statistics of all blocks, in an order that is always the same."""
    sample = tl.program_id(0) * B + tl.arange(0, B)
    here = sample < num_samples
    highest = tl.full((B,), LOWEST, tl.float32)
    for start in range(0, num_blocks, P):
        block = start + tl.arange(0, P)
        mask = (block < num_blocks)[:, None] & here[None, :]
        at = block[:, None] * num_samples + sample[None, :]
        highest = tl.maximum(highest, tl.max(tl.load(peak + at, mask=mask, other=LOWEST), 0))
    terms = tl.zeros((B,), tl.float64)
    for start in range(0, num_blocks, P):
        block = start + tl.arange(0, P)
        mask = (block < num_blocks)[:, None] & here[None, :]
        at = block[:, None] * num_samples + sample[None, :]
        factor = tl.exp(tl.load(peak + at, mask=mask, other=LOWEST) - highest[None, :])
        part = tl.load(total + at, mask=mask, other=0.0) * factor
        terms += tl.sum(part.to(tl.float64), 0)
    tl.store(log_sum + sample, highest.to(tl.float64) + tl.log(terms), mask=here)
