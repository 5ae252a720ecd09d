"""Scratch memory that the layers of a network share during one step.

A layer that allocates its own scratch frees it after its output was allocated, and glibc cannot
give the hole to the next layer: `posix_memalign` needs 96 bytes more than the freed block has. The
heap would grow by a block for every layer.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor


class Workspace:
    """A float32 block that grows to the largest request. Its content is undefined."""

    def __init__(self) -> None:
        self._block: Tensor | None = None

    def take(self, count: int) -> Tensor:
        """The first `count` elements, valid until the next call."""
        if self._block is None or self._block.numel() < count:
            self._block = None  # free the small block before the large one is allocated
            self._block = torch.empty(count)
        return self._block[:count]


_SHARED: ContextVar[Workspace | None] = ContextVar("workspace", default=None)


@contextmanager
def shared_workspace() -> Iterator[None]:
    """Give all calls of `workspace` inside the `with` block the same object.

    Whoever needs it for the backward pass keeps a reference; the memory is freed with the last one.
    """
    token = _SHARED.set(Workspace())
    try:
        yield
    finally:
        _SHARED.reset(token)


def workspace() -> Workspace:
    """The shared workspace, or a new one outside of `shared_workspace` and in a compiled graph."""
    shared = None if torch.compiler.is_compiling() else _SHARED.get()
    return Workspace() if shared is None else shared
