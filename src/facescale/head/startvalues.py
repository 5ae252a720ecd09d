"""The start values of class centres, as a function of seed and row."""

import ctypes

import torch
from torch import Tensor

from facescale.kernels.cpu.build import library
from facescale.random import key

INIT_STD = 0.01  # as arcface_torch, MXNet and OneFlow
START, SAMPLING, ROUNDING = range(3)  # keys of the head's random numbers


def start_values(seed: int, rows: Tensor, dim: int) -> Tensor:
    """N(0, 0.01) as a function of (seed, row, column), float32; (k, dim).

    The same for any sharding. Compiled and torch's numbers differ by 1e-8 at most.
    """
    start = key(seed, START)
    kernels = library("head") if rows.device.type == "cpu" else None
    if kernels is None:
        return start.child(rows[:, None]).normal(dim) * INIT_STD
    out, rows = torch.empty(len(rows), dim), rows.contiguous()
    kernels.head_start(
        *(ctypes.c_uint32(word) for word in start),
        ctypes.c_void_p(rows.data_ptr()),
        ctypes.c_int64(len(rows)),
        ctypes.c_int32(dim),
        ctypes.c_float(INIT_STD),
        ctypes.c_void_p(out.data_ptr()),
        ctypes.c_int32(torch.get_num_threads()),
    )
    return out
