"""Kernels in Triton for CUDA devices: operators on plain tensors.

No file outside this folder imports triton, and nothing imports a file of this folder before
`head_kernels_serve` or `available` said yes, except `tiles`, which are numbers: the package works
without triton.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

STORED = (torch.float32, torch.bfloat16, torch.uint8)  # types of rows that the head's kernels know
MOST_NUMBERS = 512  # of a row: the largest that was compiled without a spilled register
CAPABILITY = (8, 0)  # of the oldest GPU that the kernels were compiled for


@cache
def available() -> bool:
    """Whether triton is installed."""
    return find_spec("triton") is not None


def interpreted() -> bool:
    """Whether triton runs kernels in its interpreter, on CPU tensors. It decides on its import."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def head_kernels_serve(table: Tensor, dim: int) -> bool:
    """Whether the head's kernels work on this table of class centres, of rows of `dim` numbers."""
    known = table.dtype in STORED and dim % 16 == 0 and dim <= MOST_NUMBERS
    return known and available() and _runs_on(table.device)


_assumed = ContextVar("_assumed", default=False)


@contextmanager
def assumed() -> Iterator[None]:
    """Inside, tensors count as those of a GPU that runs the kernels: for plans on fake ones."""
    token = _assumed.set(True)
    try:
        yield
    finally:
        _assumed.reset(token)


def runs_on(device: torch.device) -> bool:
    """Whether `device` is a GPU for which the kernels were compiled, or its double in tests."""
    return _runs_on(device)


def _runs_on(device: torch.device) -> bool:
    if _assumed.get():
        return True
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= CAPABILITY
    return device.type == "cpu" and interpreted()


def norm_kernels_serve(x: Tensor) -> bool:
    """Whether the kernels of BatchNorm take this image (b, c, h, w), or these rows (b, c)."""
    known = x.dtype in (torch.float32, torch.bfloat16, torch.float16) and x.ndim in (2, 4)
    layout = torch.channels_last if x.ndim == 4 else torch.contiguous_format
    if not (known and x.is_contiguous(memory_format=layout)):
        return False
    # Of one value a channel there is no variance, which torch says.
    return x.numel() > x.shape[1] and available() and _runs_on(x.device)
