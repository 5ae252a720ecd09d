"""Times of calls on a device: by events of CUDA, or by the host's clock on a CPU."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch

LEAST, MOST = 5, 100
"""Calls that are timed, after those of the warm-up."""


@dataclass(frozen=True)
class Timed:
    """Seconds of each call."""

    seconds: list[float]

    @property
    def median(self) -> float:
        """Median seconds of a call."""
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """Distance of the quartiles as a share of the median; noise where nothing changed."""
        low, _, high = statistics.quantiles(self.seconds, n=4)
        return (high - low) / self.median


def synchronise(device: torch.device | str) -> None:
    """Wait until a CUDA device has done all that was queued; nothing on a CPU."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(call: Callable[[], object], device: torch.device | str) -> float:
    """Seconds of one call, from an idle device to an idle device."""
    synchronise(device)
    begin = time.perf_counter()
    call()
    synchronise(device)
    return time.perf_counter() - begin


def time_calls(
    call: Callable[[], object],
    device: torch.device,
    *,
    warmup: int = 2,
    seconds: float = 1.0,
    least: int = LEAST,
) -> Timed:
    """Time `call` for about so many `seconds`, but `least` times at least and `MOST` at most.

    On CUDA calls are queued one behind the other, as in training, with an event between each two.
    So the time of a call includes what its host takes where the host is slower than the device.
    """
    for _ in range(warmup):
        call()
    once = seconds_of(call, device)
    count = max(least, min(MOST, int(seconds / max(once, 1e-9))))
    if device.type != "cuda":
        return Timed([seconds_of(call, device) for _ in range(count)])
    events = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
    synchronise(device)
    events[0].record(torch.cuda.current_stream(device))
    for event in events[1:]:
        call()
        event.record(torch.cuda.current_stream(device))
    synchronise(device)
    return Timed([begin.elapsed_time(end) / 1e3 for begin, end in pairwise(events)])
