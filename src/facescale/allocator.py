"""Have the C library keep the memory that is freed, so that the next step need not ask for it."""

import ctypes
import sys

# mallopt's parameters, from glibc's malloc.h
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> bool:
    """Tell glibc not to return freed memory to the kernel; True where that took effect.

    By default each large temporary of a step is mapped anew and its pages are zeroed by the kernel
    one by one as they are touched, which costs a CPU training step a quarter of its time. The
    process then holds its largest size until it ends. Without glibc nothing happens.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    largest = 2**31 - 1  # of a C int
    settings = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, largest), (_TOP_PAD, 1 << 26))
    return all(mallopt(parameter, value) == 1 for parameter, value in settings)
