"""Runs work in a forked child that may not take more memory or time than given."""

import multiprocessing
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def limit_memory(extra: int) -> None:
    """Let this process map `extra` bytes more than it has mapped now."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * os.sysconf("SC_PAGE_SIZE") + extra
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Files of this process cannot grow beyond `size` bytes: OSError, as where a disk is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def confined(work: Callable[..., Any], *args: Any, extra: int = 2**25, seconds: float = 5) -> str:
    """The error, with its type, in which `work(*args)` ends, or the repr of what it returns.

    A child that dies or takes longer than `seconds` is told too.
    """
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()

    def child() -> None:
        limit_memory(extra)
        try:
            answer = repr(work(*args))
        except Exception as error:
            answer = f"{type(error).__name__}: {error}"
        theirs.send(answer)

    process = context.Process(target=child)
    process.start()
    theirs.close()
    try:
        if not ours.poll(seconds):
            return f"took longer than {seconds} s"
        return str(ours.recv())
    except EOFError:
        process.join()
        return f"died with exit code {process.exitcode}"
    finally:
        process.kill()
        process.join()
