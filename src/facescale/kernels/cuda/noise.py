"""Device functions for random numbers as a function of a key: the one file that knows the hash.

Bits are those of facescale/random.py and kernels/cpu/random.h. Words are uint32; a key is two.
"""

import triton
import triton.language as tl

OTHER = tl.constexpr(0xB7E15163)


@triton.jit
def word(number):
    """An int32 argument as the 32 bits that it stands for."""
    return number.to(tl.uint32, bitcast=True)


@triton.jit
def bits(low, high, counter):
    """32 random bits for each counter."""
    x = counter * 0x9E3779B9 + low
    x = (x ^ (x >> 16)) * 0x21F0AAAD
    x = x ^ high
    x = (x ^ (x >> 15)) * 0xD35A2D97
    return x ^ (x >> 15)


@triton.jit
def child(low, high, number):
    """The key of each int64 number >= 0 under a key."""
    upper = (number >> 32).to(tl.uint32)
    lower = number.to(tl.uint32)
    middle = bits(low, high, upper)
    other = bits(high, low ^ OTHER, upper)
    return bits(middle, other, lower), bits(other, middle ^ OTHER, lower)


@triton.jit
def uniform(random):
    """A multiple of 2**-24 in [0, 1) for each of 32 bits."""
    return (random >> 8).to(tl.float32) * (1.0 / 16777216)


@triton.jit
def logarithm(x):
    """log(x) for normal x > 0. Source: Cephes, logf."""
    binary = x.to(tl.uint32, bitcast=True)
    half = ((binary & 0x007FFFFF) | 0x3F000000).to(tl.float32, bitcast=True)
    small = half < 0.707106781186547524
    e = (binary >> 23).to(tl.int32).to(tl.float32) - 126 - small.to(tl.float32)
    m = tl.where(small, half + half - 1, half - 1)
    y = 7.0376836292e-2 * m - 1.1514610310e-1
    y = y * m + 1.1676998740e-1
    y = y * m - 1.2420140846e-1
    y = y * m + 1.4249322787e-1
    y = y * m - 1.6668057665e-1
    y = y * m + 2.0000714765e-1
    y = y * m - 2.4999993993e-1
    y = y * m + 3.3333331174e-1
    y = y * m * m * m - 2.12194440e-4 * e - 0.5 * m * m
    return m + y + 0.693359375 * e


@triton.jit
def normal(low, high, column):
    """Number `column` of N(0, 1) of each key. Sources: Box and Muller, 1958; Cephes, sinf, cosf."""
    pair = column & 0xFFFFFFFE
    chance = uniform(bits(low, high, pair)) + (1.0 / 16777216)  # never 0
    quarters = uniform(bits(low, high, pair + 1)) * 4
    whole = tl.floor(quarters + 0.5)
    angle = (quarters - whole) * 1.57079632679489662
    z = angle * angle
    sine = ((-1.9515295891e-4 * z + 8.3321608736e-3) * z - 1.6666654611e-1) * z * angle + angle
    cosine = (2.443315711809948e-5 * z - 1.388731625493765e-3) * z + 4.166664568298827e-2
    cosine = cosine * z * z - 0.5 * z + 1
    # The sine is the cosine of a quarter turn less.
    turn = whole.to(tl.int32) + 3 * (column & 1).to(tl.int32)
    value = tl.where((turn & 1) != 0, sine, cosine)
    negative = ((turn + 1) & 2) != 0
    return tl.sqrt(-2 * logarithm(chance)) * tl.where(negative, -value, value)
