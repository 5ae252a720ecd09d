"""How ranks find each other, and how they leave when one of them is gone."""

import os
import time
from datetime import timedelta
from hashlib import sha256
from typing import Any
from uuid import uuid4

import torch.distributed as dist

NCCL_SETTINGS = {
    "TORCH_NCCL_ASYNC_ERROR_HANDLING": "2",
    "TORCH_NCCL_DUMP_ON_TIMEOUT": "0",
    "TORCH_NCCL_RETHROW_CUDA_ERRORS": "0",
}
"""Of torch's watchdog, unless the environment has others.

After a time-out, or when another rank is gone, it aborts the communicators and leaves the process
alive: 2 is CleanUpOnly. The default, 3, ends the process with a core dump. The next collective then
raises `DistBackendError` in the main thread, which is told as one line.
"""


def join(device_type: str, timeout_s: float) -> None:
    """Initialise the default process group from torchrun's environment.

    NCCL serves tensors of CUDA devices, gloo those of the CPU, so that texts need no device.
    """
    backend = "gloo"
    if device_type == "cuda":
        backend = "cpu:gloo,cuda:nccl"
        for name, value in NCCL_SETTINGS.items():
            os.environ.setdefault(name, value)
    wait = timedelta(seconds=timeout_s)
    store, rank, size = next(dist.rendezvous("env://", timeout=wait))  # type: ignore[attr-defined]
    store = _fresh(store, rank, size, timeout_s)
    dist.init_process_group(backend, timeout=wait, store=store, rank=rank, world_size=size)


def _fresh(store: Any, rank: int, size: int, timeout_s: float) -> Any:
    """A prefix of `store` that no earlier start of these ranks has written to.

    torchrun keeps one store over all restarts, and gloo would find the addresses of killed ranks
    there. So each rank draws a random name at each start, and the prefix is a hash of all names. A
    rank counts itself only under a hash of its current name; the count reaches `size` only if all
    ranks are alive and see the same names.
    """
    names = [f"name/{other}" for other in range(size)]
    store.set(names[rank], uuid4().hex)
    counted = ""
    deadline, pause_s = time.monotonic() + timeout_s, 0.01
    store.wait(names)
    while True:
        prefix = sha256(b"".join(store.multi_get(names))).hexdigest()
        if store.add(f"count/{prefix}", int(prefix != counted)) == size:
            return dist.PrefixStore(prefix, store)  # type: ignore[attr-defined]
        counted = prefix
        if time.monotonic() > deadline:
            raise ConnectionError(
                f"not all of the {size} ranks joined within {timeout_s:g} s; raise timeout_s, or "
                "see the messages of the other ranks"
            )
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, 1.0)


def is_lost(error: RuntimeError) -> bool:
    """Whether another rank does not answer. Errors of gloo are plain RuntimeErrors."""
    return isinstance(error, dist.DistError) or "gloo/transport" in str(error)


def leave(failed: bool) -> None:
    """End the process group; one that has failed without waiting for the others.

    To destroy a communicator of NCCL waits for what is queued on it, which would never end where
    another rank is gone. So it is aborted.
    """
    abort = getattr(dist.distributed_c10d, "_abort_process_group", None)
    if failed and abort is not None and "nccl" in str(dist.get_backend_config()):
        abort()
    else:
        dist.destroy_process_group()
