"""What a phase works with: its device, its sizes, and the notes that outlive its process."""

import gc
import json
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from facescale.files import write_whole
from facescale.plan.limit import failure_of
from facescale.timing.clock import synchronise
from facescale.timing.device.sizes import Sizes

Row = dict[str, Any]
"""Plain values by name."""


class Notes:
    """The rows of a phase. The file is written anew with each, so a crash costs the last one only.

    Things that there is no time for are noted as left out.
    """

    def __init__(self, path: Path, device: torch.device, seconds: float) -> None:
        self.rows: list[Row] = []
        self.left_out: list[Row] = []
        self._path, self._device = path, device
        self._deadline = time.monotonic() + seconds
        self._last_s = 0.0

    @property
    def left_s(self) -> float:
        """Seconds that are left of the phase's share."""
        return self._deadline - time.monotonic()

    def add(self, row: Row) -> None:
        """Note a row."""
        self.rows.append(row)
        self.save()

    def measure(self, what: Row, work: Callable[[], Row]) -> Row | None:
        """Measure one thing; its row is `what` and the figures that `work` returns.

        A failure is a row with the field `failure`. Returns None for that, and where no time is
        left, which the first thing need not ask for. The memory that `work` took is free again
        afterwards.
        """
        if self.rows and self.left_s < self._last_s / 2:
            self.left_out.append(what)
            self.save()
            return None
        begin = time.monotonic()
        try:
            row = what | work()
        except Exception as error:
            traceback.print_exc()
            row = what | {"failure": ": ".join(failure_of(error))}
        free_memory(self._device)
        self._last_s = time.monotonic() - begin
        self.add(row)
        return None if "failure" in row else row

    def save(self, outcome: str = "", reason: str = "") -> None:
        """Write the file; `outcome` is that of the phase, once it has one."""
        values = {
            "outcome": outcome,
            "reason": reason,
            "rows": self.rows,
            "left_out": self.left_out,
        }
        write_whole(self._path, [json.dumps(values).encode()])


@dataclass(frozen=True)
class Bench:
    """All that a phase gets."""

    device: torch.device
    sizes: Sizes
    notes: Notes
    argument: str = ""

    @property
    def on_cuda(self) -> bool:
        """Whether a CUDA device is measured."""
        return self.device.type == "cuda"


def free_memory(device: torch.device) -> None:
    """Give back what nothing refers to any more, and count the peak anew; the latter on CUDA."""
    gc.collect()
    if device.type == "cuda":
        synchronise(device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def peaks(device: torch.device) -> Row:
    """Most GiB since `free_memory`: of tensors, and of what the allocator has reserved for them."""
    if device.type != "cuda":
        return {}
    return {
        "peak_gib": torch.cuda.max_memory_allocated(device) / 2**30,
        "reserved_gib": torch.cuda.max_memory_reserved(device) / 2**30,
    }
