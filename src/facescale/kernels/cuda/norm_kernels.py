"""Kernels of BatchNorm, the PReLU behind it and the sum with a shortcut, over (rows, channels)."""

import triton
import triton.language as tl


@triton.jit
def tile_at(start, channel, stop, C):
    """Offsets and mask of the rows from `start` on; (rows, channels)."""
    row = start
    at = row.to(tl.int64)[:, None] * C + channel[None, :]
    return at, (row < stop)[:, None] & (channel < C)[None, :]


@triton.jit(do_not_specialize=["num_rows", "split_rows"])
def moments_kernel(
    x, mean, square, num_rows, split_rows, C: tl.constexpr, R: tl.constexpr, BC: tl.constexpr
):
    """Mean, and sum of squared distances from it, of one split's rows; (splits, C) each."""
    wide = tl.cdiv(C, BC)
    split = tl.program_id(0) // wide
    channel = tl.program_id(0) % wide * BC + tl.arange(0, BC)
    first = split * split_rows
    stop = tl.minimum(first + split_rows, num_rows)
    # Relative to one of the numbers, so that a large mean costs no digits.
    shift = tl.load(x + first.to(tl.int64) * C + channel, mask=channel < C, other=0.0)
    shift = shift.to(tl.float32)[None, :]
    total = tl.zeros((R, BC), tl.float32)
    squares = tl.zeros((R, BC), tl.float32)
    for start in range(first, stop, R):
        at, mask = tile_at(start + tl.arange(0, R), channel, stop, C)
        number = tl.load(x + at, mask=mask, other=0.0).to(tl.float32) - shift
        number = tl.where(mask, number, 0.0)
        total += number
        squares += number * number
    count = (stop - first).to(tl.float32)
    part = tl.sum(total, 0)
    here = split * C + channel
    tl.store(mean + here, tl.sum(shift, 0) + part / count, mask=channel < C)
    rest = tl.maximum(tl.sum(squares, 0) - part * part / count, 0.0)
    tl.store(square + here, rest, mask=channel < C)


@triton.jit
def split_counts(start, num_splits, num_rows, split_rows, P: tl.constexpr):
    """Numbers of `P` splits, and how many rows each has."""
    split = start + tl.arange(0, P)
    count = tl.minimum(num_rows - split * split_rows, split_rows)
    return split, tl.where(split < num_splits, count, 0).to(tl.float32)


@triton.jit(do_not_specialize=["num_splits", "num_rows", "split_rows"])
def join_moments_kernel(
    means,
    squares,
    mean,
    inverse,
    running_mean,
    running_variance,
    num_splits,
    num_rows,
    split_rows,
    momentum,
    eps,
    C: tl.constexpr,
    P: tl.constexpr,
    BC: tl.constexpr,
):
    """Mean and 1 / deviation of all rows, and the running statistics; (C,) each."""
    channel = tl.program_id(0) * BC + tl.arange(0, BC)
    here = channel < C
    total = tl.zeros((BC,), tl.float32)
    for start in range(0, num_splits, P):
        split, count = split_counts(start, num_splits, num_rows, split_rows, P)
        mask = (split < num_splits)[:, None] & here[None, :]
        part = tl.load(means + split[:, None] * C + channel[None, :], mask=mask, other=0.0)
        total += tl.sum(part * (count / num_rows)[:, None], 0)
    square = tl.zeros((BC,), tl.float32)
    for start in range(0, num_splits, P):
        split, count = split_counts(start, num_splits, num_rows, split_rows, P)
        mask = (split < num_splits)[:, None] & here[None, :]
        at = split[:, None] * C + channel[None, :]
        apart = tl.load(means + at, mask=mask, other=0.0) - total[None, :]
        inside = tl.load(squares + at, mask=mask, other=0.0)
        square += tl.sum(tl.where(mask, inside + count[:, None] * apart * apart, 0.0), 0)
    tl.store(mean + channel, total, mask=here)
    tl.store(inverse + channel, 1 / tl.sqrt_rn(square / num_rows + eps), mask=here)
    before = tl.load(running_mean + channel, mask=here)
    tl.store(running_mean + channel, before + momentum * (total - before), mask=here)
    before = tl.load(running_variance + channel, mask=here)
    unbiased = square / tl.maximum(num_rows - 1, 1)
    tl.store(running_variance + channel, before + momentum * (unbiased - before), mask=here)


@triton.jit
def channel_values(pointer, channel, C: tl.constexpr):
    """One float32 of each channel; (1, channels)."""
    return tl.load(pointer + channel, mask=channel < C, other=0.0).to(tl.float32)[None, :]


@triton.jit(do_not_specialize=["num_rows"])
def normalize_kernel(
    x,
    mean,
    inverse,
    weight,
    bias,
    slope,
    shortcut,
    y,
    num_rows,
    C: tl.constexpr,
    ACT: tl.constexpr,
    SUM: tl.constexpr,
    R: tl.constexpr,
    BC: tl.constexpr,
):
    """PReLU of the normalised rows, plus the shortcut; both by option."""
    wide = tl.cdiv(C, BC)
    channel = tl.program_id(0) % wide * BC + tl.arange(0, BC)
    start = tl.program_id(0) // wide * R
    at, mask = tile_at(start + tl.arange(0, R), channel, num_rows, C)
    factor = channel_values(weight, channel, C) * channel_values(inverse, channel, C)
    number = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
    number = (number - channel_values(mean, channel, C)) * factor
    number += channel_values(bias, channel, C)
    if ACT:
        number = tl.where(number > 0, number, number * channel_values(slope, channel, C))
    if SUM:
        number += tl.load(shortcut + at, mask=mask, other=0.0).to(tl.float32)
    tl.store(y + at, number.to(y.dtype.element_ty), mask=mask)


@triton.jit
def before_activation(x, gradient, at, mask, mean, inverse, weight, bias, slope, ACT: tl.constexpr):
    """Normalised numbers, the gradient of BatchNorm's output, and what adds to the slope's."""
    number = (tl.load(x + at, mask=mask, other=0.0).to(tl.float32) - mean) * inverse
    to_z = tl.load(gradient + at, mask=mask, other=0.0).to(tl.float32)
    to_slope = to_z
    if ACT:
        z = number * weight + bias
        to_slope = tl.where(z > 0, 0.0, to_z * z)
        to_z = tl.where(z > 0, to_z, to_z * slope)
    return number, to_z, to_slope


@triton.jit(do_not_specialize=["num_rows", "split_rows"])
def norm_sums_kernel(
    x,
    gradient,
    mean,
    inverse,
    weight,
    bias,
    slope,
    sums,
    num_splits,
    num_rows,
    split_rows,
    C: tl.constexpr,
    ACT: tl.constexpr,
    R: tl.constexpr,
    BC: tl.constexpr,
):
    """Gradients of weight, bias and slope by one split's rows; (3, splits, C)."""
    wide = tl.cdiv(C, BC)
    split = tl.program_id(0) // wide
    channel = tl.program_id(0) % wide * BC + tl.arange(0, BC)
    to_weight = tl.zeros((R, BC), tl.float32)
    to_bias = tl.zeros((R, BC), tl.float32)
    to_slope = tl.zeros((R, BC), tl.float32)
    average, deviation = channel_values(mean, channel, C), channel_values(inverse, channel, C)
    w, b = channel_values(weight, channel, C), channel_values(bias, channel, C)
    s = channel_values(slope, channel, C)
    first = split * split_rows
    stop = tl.minimum(first + split_rows, num_rows)
    for start in range(first, stop, R):
        at, mask = tile_at(start + tl.arange(0, R), channel, stop, C)
        number, to_z, part = before_activation(
            x, gradient, at, mask, average, deviation, w, b, s, ACT
        )
        to_weight += to_z * number
        to_bias += to_z
        if ACT:
            to_slope += part
    here = sums + split * C + channel
    size = num_splits * C
    tl.store(here, tl.sum(to_weight, 0), mask=channel < C)
    tl.store(here + size, tl.sum(to_bias, 0), mask=channel < C)
    tl.store(here + 2 * size, tl.sum(to_slope, 0), mask=channel < C)


@triton.jit(do_not_specialize=["num_rows"])
def norm_backward_kernel(
    x,
    gradient,
    mean,
    inverse,
    weight,
    bias,
    slope,
    totals,
    to_x,
    num_rows,
    C: tl.constexpr,
    ACT: tl.constexpr,
    TRAINING: tl.constexpr,
    R: tl.constexpr,
    BC: tl.constexpr,
):
    """Gradient of BatchNorm's input from the totals (weight, bias, ...), (2 or more, C)."""
    wide = tl.cdiv(C, BC)
    channel = tl.program_id(0) % wide * BC + tl.arange(0, BC)
    start = tl.program_id(0) // wide * R
    at, mask = tile_at(start + tl.arange(0, R), channel, num_rows, C)
    deviation, w = channel_values(inverse, channel, C), channel_values(weight, channel, C)
    number, to_z, _ = before_activation(
        x, gradient, at, mask, channel_values(mean, channel, C), deviation, w,
        channel_values(bias, channel, C), channel_values(slope, channel, C), ACT,
    )  # fmt: skip
    if TRAINING:
        along = channel_values(totals, channel, C) / num_rows
        to_z -= number * along + channel_values(totals + C, channel, C) / num_rows
    tl.store(to_x + at, (to_z * (w * deviation)).to(to_x.dtype.element_ty), mask=mask)
