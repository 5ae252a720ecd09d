"""One collective that gathers rows and whole numbers of every rank, however many each brings."""

import torch
from torch import Tensor

from facescale.distributed import Group


class RowGather:
    """Gathers a batch over a group, remembering how much room the largest part has needed.

    Each rank sends a fixed number of rows: a header with its true count, its rows, padding. Should
    a count exceed the room, every rank sees that in the headers and all of them repeat with more
    room. So a run pays one collective a step, and a second one only when a batch grows.
    """

    def __init__(self, group: Group) -> None:
        self.group = group
        self.room = 0

    def __call__(
        self, rows: Tensor, numbers: Tensor, signal: int = 0
    ) -> tuple[Tensor, Tensor, list[int], int]:
        """Concatenate over the group in rank order.

        Args:
            rows: (b, dim) floating; dim may be 0.
            numbers: (k, b) int64, k whole numbers for each row, at least 2.
            signal: One whole number >= 0 of this rank, which travels in the header for nothing.

        Returns:
            (B, dim), (k, B), the count b of every rank and the largest signal.
        """
        if self.group.size == 1:
            return rows, numbers, [len(rows)], signal
        payload = torch.cat([_as_bytes(rows), _as_bytes(numbers.T)], dim=1)
        while True:
            sent = payload.new_zeros(self.room + 1, payload.shape[1])
            sent[0, :16] = _as_bytes(torch.tensor([[len(rows), signal]], device=rows.device))
            kept = payload[: self.room]
            sent[1 : len(kept) + 1] = kept
            gathered = self.group.all_gather(sent)
            headers = gathered[:, 0, :16].contiguous().view(torch.int64)
            counts, signals = headers.T.tolist()
            if max(counts) <= self.room:
                break
            self.room = max(counts)
        parts = [block[1 : n + 1] for block, n in zip(gathered, counts, strict=True)]
        joined = torch.cat(parts)
        width = rows.shape[1] * rows.element_size()
        return (
            joined[:, :width].contiguous().view(rows.dtype),
            joined[:, width:].contiguous().view(torch.int64).T,
            counts,
            max(signals),
        )


def _as_bytes(rows: Tensor) -> Tensor:
    """The same memory as (n, bytes) uint8."""
    return rows.contiguous().view(torch.uint8)
