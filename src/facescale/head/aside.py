"""Work that a device does beside its queue: the class centres move while the backbone learns.

Everyone who reads the centres waits for it, on the device and without the host. `ClassCentres` does
so for all its readers.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor


class Aside(Protocol):
    """Takes work, and lets others wait for it."""

    def run(self, work: Callable[[], None], uses: Sequence[Tensor]) -> None:
        """Begin `work` once all that is queued now is done.

        Args:
            work: Queues operations on the device.
            uses: What it reads and writes, and nobody else keeps until it is done.
        """
        ...

    def wait(self) -> None:
        """Let what is queued from now on begin after all work."""
        ...


class AtOnce:
    """No other queue: work is done when it is given."""

    def run(self, work: Callable[[], None], uses: Sequence[Tensor]) -> None:
        """As `Aside.run`."""
        work()

    def wait(self) -> None:
        """As `Aside.wait`."""


class SideStream:
    """A second stream of a CUDA device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device)
        self._done: torch.cuda.Event | None = None
        self._waited: set[int] = set()

    def run(self, work: Callable[[], None], uses: Sequence[Tensor]) -> None:
        """As `Aside.run`."""
        self._stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._stream):
            work()
        for tensor in uses:
            tensor.record_stream(self._stream)  # else its memory were given away before
        self._done = self._stream.record_event()
        self._waited.clear()

    def wait(self) -> None:
        """As `Aside.wait`, for the current stream; several calls cost one event."""
        stream = torch.cuda.current_stream(self.device)
        if self._done is not None and stream.cuda_stream not in self._waited:
            stream.wait_event(self._done)
            self._waited.add(stream.cuda_stream)

    def __reduce__(self) -> tuple[type["SideStream"], tuple[torch.device]]:
        """A copy has a stream of its own."""
        return SideStream, (self.device,)


def make_aside(device: torch.device) -> Aside:
    """A side stream on a CUDA device; elsewhere work is done at once."""
    return SideStream(device) if device.type == "cuda" else AtOnce()
