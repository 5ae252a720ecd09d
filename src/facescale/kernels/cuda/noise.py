"""Device functions for random bits as a function of a key: the one file that knows the hash.

The bits are those of `Noise` in kernels/cpu/rows.h, so that a row is rounded alike on any device.
"""

import triton
import triton.language as tl


@triton.jit
def mix(x):
    """The finalizer of MurmurHash3 (Appleby); uint32."""
    x = (x ^ (x >> 16)) * 0x85EBCA6B
    x = (x ^ (x >> 13)) * 0xC2B2AE35
    return x ^ (x >> 16)


@triton.jit
def noise_keys(key, line):
    """The key of each line's noise, uint32; `key` is the step's (int32 bits), `line` int64."""
    low = line.to(tl.uint32)
    high = (line >> 32).to(tl.uint32)
    return mix(mix(low + high * 0x9E3779B9) ^ key.to(tl.uint32, bitcast=True))


@triton.jit
def noise_bits(keys, column):
    """32 random bits for each element of lines (rows,) and columns (columns,)."""
    return mix(keys[:, None] + (column.to(tl.uint32) * 0x9E3779B9)[None, :])


@triton.jit
def uniform(bits):
    """A multiple of 2**-24 in [0, 1)."""
    return (bits >> 8).to(tl.float32) * (1.0 / 16777216)
