"""What the ranks of a group exchange of a batch, however many samples each brings."""

import torch
from torch import Tensor

from facescale.distributed import Group


class LabelGather:
    """Gathers whole numbers over a group in one collective a step.

    Where the caller knows how many each rank has, nothing is read from the device. Otherwise each
    rank sends its count, its numbers and padding, as many as the largest part has needed so far,
    and the host reads the counts. If a count exceeds the room, every rank sees that, and all repeat
    with more room. So a second collective happens only when a batch grows.
    """

    def __init__(self, group: Group) -> None:
        self.group = group
        self.room = 0

    def __call__(self, numbers: Tensor, known: list[int] | None = None) -> tuple[Tensor, list[int]]:
        """(b,) of each rank to (B,) in rank order, and the count b of every rank.

        Args:
            numbers: This rank's.
            known: The count of every rank, the same list on all of them; None where only each rank
                knows its own.

        Raises:
            ValueError: `known` is not a list for this group, or gives this rank another count.
        """
        if known is not None:
            self._check(numbers, known)
            return gather_rows(self.group, numbers, known), known
        if self.group.size == 1:
            return numbers, [len(numbers)]
        while True:
            sent = numbers.new_zeros(self.room + 1)
            sent[0] = len(numbers)
            kept = numbers[: self.room]
            sent[1 : len(kept) + 1] = kept
            gathered = self.group.all_gather(sent)
            counts: list[int] = gathered[:, 0].tolist()
            if max(counts) <= self.room:
                return _join(gathered[:, 1:], counts), counts
            self.room = max(counts)

    def _check(self, numbers: Tensor, counts: list[int]) -> None:
        size, rank = self.group.size, self.group.rank
        if len(counts) != size or counts[rank] != len(numbers) or min(counts) < 0:
            raise ValueError(
                f"counts {counts} must have the number of samples of each of {size} ranks, and "
                f"rank {rank} has {len(numbers)}"
            )


def gather_rows(group: Group, rows: Tensor, counts: list[int]) -> Tensor:
    """(b, ...) of each rank to (B, ...) in rank order, where `counts` says each b."""
    if group.size == 1:
        return rows
    padded = rows
    if len(rows) < max(counts):
        padded = rows.new_zeros(max(counts), *rows.shape[1:])
        padded[: len(rows)] = rows
    return _join(group.all_gather(padded), counts)


def scatter_sum(group: Group, rows: Tensor, counts: list[int]) -> Tensor:
    """Sum (B, ...) over the group and keep the rows of this rank, (b, ...)."""
    if len(set(counts)) == 1:
        return group.reduce_scatter(rows.reshape(group.size, counts[0], *rows.shape[1:]))
    padded = rows.new_zeros(group.size, max(counts), *rows.shape[1:])
    for part, own in zip(padded, rows.split(counts), strict=True):
        part[: len(own)] = own
    return group.reduce_scatter(padded)[: counts[group.rank]]


def _join(gathered: Tensor, counts: list[int]) -> Tensor:
    """The first rows of each part, one part after the other."""
    if min(counts) == gathered.shape[1]:
        return gathered.flatten(0, 1)
    return torch.cat([part[:count] for part, count in zip(gathered, counts, strict=True)])
