"""Kernels of the head's backward pass up to the embeddings: probabilities, and their product."""

import triton
import triton.language as tl

from facescale.kernels.cuda.rows import dot, drawn_rows, load_rows, tile_mask


@triton.jit(do_not_specialize=["first_place", "count"])
def probability_kernel(
    logits,
    inverse,
    log_sum,
    to_own,
    own_place,
    factor,
    radial,
    first_place,
    count,
    num_samples,
    scale,
    limit,
    R: tl.constexpr,
    B: tl.constexpr,
):
    """Turn logits of R rows into gradients of the products; see `head.probability_`."""
    place = tl.program_id(0) * R + tl.arange(0, R)
    length = tl.load(inverse + place, mask=place < count, other=0.0)
    used = length > 0
    rate = tl.load(factor).to(tl.float32)
    pull = tl.zeros((R,), tl.float32)
    for start in range(0, num_samples, B):
        sample = start + tl.arange(0, B)
        here = sample < num_samples
        mask = (place < count)[:, None] & here[None, :]
        at = logits + place.to(tl.int64)[:, None] * num_samples + sample[None, :]
        logit = tl.load(at, mask=mask, other=0.0)
        total = tl.load(log_sum + sample, mask=here, other=0.0).to(tl.float32)
        own = tl.load(own_place + sample, mask=here, other=-1).to(tl.int32)
        own = own[None, :] == (first_place + place)[:, None]
        gradient = tl.load(to_own + sample, mask=here, other=0.0).to(tl.float32)
        other = tl.where(logit > limit, 0.0, tl.exp(logit - total[None, :]))
        share = tl.where(own, gradient[None, :], other)
        share = tl.where(used[:, None] & here[None, :], share, 0.0)
        pull += tl.sum(share * logit, 1)
        tl.store(at, share * (rate * length)[:, None], mask=mask)
    tl.store(radial + place, pull * (rate / scale) * length * length, mask=place < count)


@triton.jit(do_not_specialize=["first", "count", "split_rows"])
def to_batch_kernel(
    table,
    scales,
    rows,
    product,
    out,
    first,
    count,
    num_samples,
    split_rows,
    PARTS: tl.constexpr,
    D: tl.constexpr,
    FORMAT: tl.constexpr,
    GATHER: tl.constexpr,
    PRECISION: tl.constexpr,
    R: tl.constexpr,
    B: tl.constexpr,
    BD: tl.constexpr,
):
    """One split's part of product.T @ weight for B samples and BD columns; see `head.to_batch`."""
    wide = tl.cdiv(D, BD)
    tiles = tl.cdiv(num_samples, B)
    split = tl.program_id(0) // (tiles * wide)
    sample = tl.program_id(0) // wide % tiles * B + tl.arange(0, B)
    column = tl.program_id(0) % wide * BD + tl.arange(0, BD)
    here = sample < num_samples
    acc = tl.zeros((B, BD), tl.float32)
    stop = tl.minimum((split + 1) * split_rows, count)
    for start in range(split * split_rows, stop, R):
        place = start + tl.arange(0, R)
        row, used = drawn_rows(rows, place, first, stop, GATHER)
        mask = tile_mask(used, column, D, BD)
        weight = load_rows(table, scales, row, used, mask, column, 0, PARTS, D, FORMAT)
        at = product + place.to(tl.int64)[:, None] * num_samples + sample[None, :]
        share = tl.load(at, mask=used[:, None] & here[None, :], other=0.0)
        acc = dot(tl.trans(share), weight, acc, PRECISION)
    at = out + (split * num_samples + sample)[:, None] * D + column[None, :]
    tl.store(at, acc, mask=tile_mask(here, column, D, BD))
