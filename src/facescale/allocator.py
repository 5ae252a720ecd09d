"""Settings of the process's memory: keep freed memory, huge pages; and what is available."""

import ctypes
import mmap
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # torch is not needed to start
    from torch import Tensor

NO_THREAD = "can't start new thread"
"""What Python says where the system refuses a thread, or the memory of its stack."""

# mallopt's parameters, from glibc's malloc.h
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> bool:
    """Configure glibc to keep freed memory; True if it took effect.

    By default each large temporary of a step is mapped again, and the kernel zeroes its pages at
    first access, which takes a quarter of a CPU training step. With this setting the process keeps
    its largest size until it ends. Without glibc nothing happens.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    largest = 2**31 - 1  # of a C int
    settings = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, largest), (_TOP_PAD, 1 << 26))
    return all(mallopt(parameter, value) == 1 for parameter, value in settings)


def use_huge_pages(tensor: "Tensor") -> bool:
    """Ask for pages of 2 MB for a CPU tensor that was not written yet; True if granted.

    Rows drawn at random from gigabytes are on a page each, and the processor's TLB has some
    thousand entries. Linux grants it if transparent_hugepage is "madvise" or "always".
    """
    advice = getattr(mmap, "MADV_HUGEPAGE", None)
    if advice is None or tensor.device.type != "cpu":
        return False
    first = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    length = tensor.data_ptr() + tensor.nbytes - first
    if length < mmap.PAGESIZE:
        return False
    madvise = ctypes.CDLL(None).madvise
    return bool(madvise(ctypes.c_void_p(first), ctypes.c_size_t(length), advice) == 0)


def available_memory() -> float:
    """Available bytes of memory; 8 GiB if the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return 8 * 2.0**30
    return next(1024.0 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
