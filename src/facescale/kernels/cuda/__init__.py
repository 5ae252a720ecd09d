"""Kernels in Triton for CUDA devices: operators on plain tensors.

No file outside this folder imports triton, and nothing imports a file of this folder unless a CUDA
device is used: the package works without triton.
"""

from importlib.util import find_spec


def available() -> bool:
    """Whether triton is installed."""
    return find_spec("triton") is not None
