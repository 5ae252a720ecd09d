"""Signals on which a run saves a checkpoint and stops.

Schedulers send SIGTERM, SIGUSR1 or SIGUSR2 before they end a job, a lost terminal sends SIGHUP,
and Ctrl-C sends SIGINT.
"""

import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

import torch
from torch import Tensor

from facescale.distributed import Group

SIGNALS = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGUSR2,
)
IMPATIENCE_S = 2.0
"""A second Ctrl-C after so long leaves at once; before, torchrun's copy of the first may come."""

Handler = Callable[[int, FrameType | None], object]


@dataclass
class Asked:
    """Whether this rank has been asked to leave: the number of the signal, or 0."""

    signal: int = 0
    since: float = 0.0

    def __call__(self, number: int, _: FrameType | None) -> None:
        """Note a signal."""
        now = time.monotonic()
        if self.signal and number == signal.SIGINT and now - self.since > IMPATIENCE_S:
            raise KeyboardInterrupt
        if not self.signal:
            self.signal, self.since = number, now


class StopFlag:
    """Tells all ranks of a signal that any of them got, all at the same step.

    One small collective a call. On CUDA a call returns what the call before has gathered, which by
    then has been copied to the host: waiting for it here would stall the device.
    """

    def __init__(self, world: Group, device: torch.device) -> None:
        self._world, self._device = world, device
        self._copied: tuple[Tensor, torch.cuda.Event] | None = None

    def __call__(self, number: int) -> int:
        """Send this rank's signal, or 0; returns the largest that any rank has sent."""
        sent = torch.tensor([number], device=self._device)
        largest = self._world.all_gather(sent).max()
        if self._device.type == "cpu":
            return int(largest)
        before = self._copied  # CUDA only
        event = torch.cuda.Event()
        self._copied = (largest.to("cpu", non_blocking=True), event)
        event.record()
        if before is None:
            return 0
        before[1].synchronize()
        return int(before[0])


@contextmanager
def asked_to_leave() -> Iterator[Asked]:
    """Listen for the signals inside the block."""
    asked = Asked()
    with heard_by(asked, SIGNALS):
        yield asked


@contextmanager
def heard_by(handler: Handler, numbers: Iterable[signal.Signals]) -> Iterator[None]:
    """Let `handler` hear signals inside the block; what they did before holds again after it.

    Python hears signals in its main thread alone; in another one there is nothing to listen for.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # What is ignored stays so: nohup ignores SIGHUP, and the run is to outlive the terminal.
    heard = (n for n in numbers if signal.getsignal(n) is not signal.SIG_IGN)
    before = {number: signal.signal(number, handler) for number in heard}
    try:
        yield
    finally:
        for number, was in before.items():
            signal.signal(number, was)
