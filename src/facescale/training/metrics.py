"""What a run reports: rates counted over windows, mean losses, peak memory, and their records."""

import json
import math
import re
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from facescale.distributed import Group


@dataclass
class Window:
    """Samples and seconds since the last report. The clock is an argument, so that it is tested.

    Time that is not training (verification, saving) is taken out by `skip`.
    """

    clock: Callable[[], float] = time.perf_counter
    samples: int = 0
    start: float = field(init=False)

    def __post_init__(self) -> None:
        self.start = self.clock()

    def add(self, samples: int) -> None:
        """Count the samples of a step, of all ranks together."""
        self.samples += samples

    def skip(self, seconds: float) -> None:
        """Leave `seconds` out of the window."""
        self.start += seconds

    def close(self) -> float:
        """Samples per second of this window; the next one begins."""
        now = self.clock()
        rate = self.samples / max(now - self.start, 1e-9)
        self.samples, self.start = 0, now
        return rate


class Tally:
    """Mean loss and traffic of the steps since the last report; the loss stays on the device.

    Steps whose loss is not finite, and which therefore changed nothing, are no part of the mean.
    """

    def __init__(self, device: torch.device, world: Group, groups: Sequence[Group]) -> None:
        """`groups` are all that a step speaks in; over `world` the loss is summed."""
        self.mean = math.nan
        self._world, self._groups = world, groups
        self._sums = torch.zeros(2, dtype=torch.float64, device=device)
        self._steps, self._before = 0, self._traffic()

    def add_(self, share: Tensor) -> None:
        """Count a step of which this rank has `share` of the loss, ()."""
        finite = share.isfinite()
        self._sums += torch.stack([share.where(finite, 0.0), finite.to(share.dtype)])
        self._steps += 1

    def close(self) -> dict[str, float]:
        """Mean loss over all ranks, collectives and MiB sent by this rank a step. Begins anew."""
        calls, sent = (now - then for now, then in zip(self._traffic(), self._before, strict=True))
        total, steps = self._world.all_reduce_(self._sums).tolist()
        self.mean = total * self._world.size / steps if steps else math.nan
        row = {
            "loss": self.mean,
            "collectives": calls / max(1, self._steps),
            "sent_mib": sent / max(1, self._steps) / 2**20,
        }
        self._sums.zero_()
        self._steps, self._before = 0, self._traffic()
        return row

    def _traffic(self) -> tuple[int, int]:
        """Collectives and bytes of all groups so far."""
        traffic = [group.traffic for group in self._groups]
        return sum(t.calls.total() for t in traffic), sum(t.sent.total() for t in traffic)


def memory_row(device: torch.device) -> dict[str, float]:
    """Peak memory for the records, GiB: of tensors, and on CUDA with what torch keeps beside them.

    What is reserved and what CUDA itself takes (some 0.5 GB) are gone for other processes.
    """
    row = {"peak_gib": peak_memory(device) / 2**30}
    if device.type == "cuda":
        row["reserved_gib"] = torch.cuda.max_memory_reserved(device) / 2**30
    return row


def peak_memory(device: torch.device) -> int:
    """Most bytes that this rank has held so far: on the device, or on the CPU in all."""
    if device.type == "cuda":  # CUDA only
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    # Linux lets a process begin with its parent's ru_maxrss.
    if status.exists() and (found := re.search(r"VmHWM:\s+(\d+) kB", status.read_text())):
        return int(found[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a run, each with a "step"; a last line cut off by a crash is left out.

    Raises:
        ValueError: Another line is not a record; the text names file and line.
    """
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(_record(line))
        except (ValueError, RecursionError) as error:
            if number == len(lines) and not line.endswith(b"\n"):
                break
            raise ValueError(f"{path}, line {number} is no record: {error}") from error
    return rows


def _record(line: bytes) -> dict[str, Any]:
    row = json.loads(line)
    if not (isinstance(row, dict) and isinstance(row.get("step"), int)):
        raise ValueError("it is not an object with a whole number 'step'")
    for name, value in row.items():
        if not isinstance(value, int | float):
            raise ValueError(f"{name} is {value!r:.60}, not a number")
    return row


def speed_line(
    images_per_s: float,
    loss: float,
    lr: float,
    epoch: int,
    step: int,
    hours_left: float,
    grad_scale: float | None = None,
) -> str:
    """The line that arcface_torch logs, to the letter: its users' scripts look for these fields."""
    scale = "" if grad_scale is None else f"Fp16 Grad Scale: {grad_scale:2.0f}   "
    return (
        f"Speed {images_per_s:.2f} samples/sec   Loss {loss:.4f}   LearningRate {lr:.6f}   "
        f"Epoch: {epoch}   Global Step: {step}   {scale}Required: {hours_left:1.0f} hours"
    )
