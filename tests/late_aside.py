"""A double of a device's second stream: work is done as late as the one who waits allows."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from unittest import mock

import torch
from torch import Tensor

from facescale.head import centres


class LateAside:
    """Keeps work until somebody waits for it. Who forgets to wait sees old numbers.

    Attributes:
        order: "run" and "wait", as they came; a wait for nothing is left out.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self.order: list[str] = []
        self._work: list[Callable[[], None]] = []
        self.used: list[Sequence[Tensor]] = []

    def run(self, work: Callable[[], None], uses: Sequence[Tensor]) -> None:
        self.wait()  # a stream does one after the other
        self.order.append("run")
        self.used.append(uses)
        self._work.append(work)

    def wait(self) -> None:
        work, self._work = self._work, []
        if work:
            self.order.append("wait")
        for each in work:
            each()


@contextmanager
def late_asides() -> Iterator[None]:
    """Heads that are made inside the block move their centres as late as they may."""
    with mock.patch.object(centres, "make_aside", LateAside):
        yield
