"""Checks on a device that does not wait for the host: what they find is read one step later."""

import torch
from torch import Tensor


class LateNumbers:
    """Whole numbers (n,) on their way from a device to the host, which goes on meanwhile."""

    def __init__(self, numbers: Tensor) -> None:
        self._event: torch.cuda.Event | None = None
        host = numbers
        if numbers.device.type == "cuda":
            host = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
            host.copy_(numbers, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record(torch.cuda.current_stream(numbers.device))
        self._host = host.numpy()

    def read(self) -> list[int]:
        """The numbers. Waits for what was queued before them, but for nothing behind it."""
        if self._event is not None:
            self._event.synchronize()
        return [int(number) for number in self._host]
