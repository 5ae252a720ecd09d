"""Limits of memory that a process sets itself, and the errors that say it ran out."""

import sys

import torch

from facescale.allocator import NO_THREAD

OUT_OF_MEMORY = "out of memory"
"""Outcome of a run that ended because an allocation failed."""
_SIGNS = (
    *("can't allocate memory", "cannot allocate memory", "bad_alloc", "out of memory"),
    "could not create a primitive",  # oneDNN's message if an allocation fails
    *("status_alloc_failed", "cublas_status_not_initialized"),  # no room for a handle of CUDA's
)


def limit_memory(count: int, device: torch.device) -> None:
    """Make allocations of this process beyond `count` bytes fail.

    On CUDA the limit is one of the device's memory, CUDA's context included, as if the GPU had no
    more than `count`. It is enforced by torch's caching allocator; what other libraries allocate is
    not limited. On a CPU it is the kernel's RLIMIT_DATA, which counts heap and private writable
    mappings, touched or not. RLIMIT_AS would count libraries and reserved address space too, of
    which a torch process has gigabytes.

    Raises:
        ValueError: No limit can be set on this system, or CUDA's context alone needs more.
    """
    if device.type == "cuda":
        _limit_card(count, device)
    elif sys.platform.startswith("linux"):
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (count, count))
    else:
        raise ValueError("a limit of memory on the CPU needs Linux; leave out --memory")


def _limit_card(count: int, device: torch.device) -> None:
    total = torch.cuda.get_device_properties(device).total_memory
    left = count - outside_allocator(device)
    if left <= 0:
        raise ValueError(f"a limit of {count} bytes leaves no memory beside CUDA's context")
    torch.cuda.set_per_process_memory_fraction(min(1.0, left / total), device)


def outside_allocator(device: torch.device) -> int:
    """Bytes of a CUDA device that are in use, but not by torch's caching allocator.

    These are CUDA's context and, where the GPU is shared, the memory of other processes.
    """
    torch.empty(1, device=device)  # makes the context
    free, total = torch.cuda.mem_get_info(device)
    return max(0, total - free - torch.cuda.memory_reserved(device))


def failure_of(error: BaseException) -> tuple[str, str]:
    """What ended a run, `OUT_OF_MEMORY` or "error", and the first line of why."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    kind = OUT_OF_MEMORY if is_out_of_memory(error) else "error"
    return kind, f"{type(error).__name__}: {lines[0]}"[:300]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, in torch, numpy, a library or CUDA.

    Under a limit of the kernel, that is also a thread for whose stack nothing was left.
    """
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    message = str(error).lower()
    signs = (*_SIGNS, NO_THREAD) if _is_limited() else _SIGNS
    return any(sign in message for sign in signs)


def _is_limited() -> bool:
    if not sys.platform.startswith("linux"):
        return False
    import resource

    return resource.getrlimit(resource.RLIMIT_DATA)[0] != resource.RLIM_INFINITY
