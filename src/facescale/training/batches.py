"""Batches taken from the loader early enough that all ranks stop before one that one rank lacks."""

import os
from collections import deque

import torch

from facescale.data.loader import Batch, Loader
from facescale.data.unreadable import UnreadableRecord
from facescale.distributed import Group

UNREADABLE = 255
"""What a rank sends in place of a signal's number: it has no batch for a step to come."""


class Batches:
    """The batches of a run up to its last step, and why one of them could not be read.

    A step is a collective, so no rank may begin one that another has no batch for. The stop flag is
    known after the step in which it was sent on the CPU, and a step later on CUDA; a batch is
    therefore taken one or two steps before its own.

    Attributes:
        failure: The record that ends the run; None while all could be read.
    """

    def __init__(self, loader: Loader, num_steps: int, device: torch.device) -> None:
        """Take the first batches of the `num_steps` that are left, below 1 in a finished run."""
        self.failure: UnreadableRecord | None = None
        self._loader, self._left = loader, num_steps
        self._taken: deque[Batch] = deque()
        for _ in range(1 if device.type == "cpu" else 2):
            self.take()

    def __next__(self) -> Batch:
        """The batch of the next step."""
        return self._taken.popleft()

    def take(self) -> None:
        """Take one batch more, unless the run ends before it."""
        if self._left <= 0 or self.failure is not None:
            return
        self._left -= 1
        try:
            self._taken.append(next(self._loader))
        except UnreadableRecord as error:
            self.failure = error

    def raise_if_failed(self, world: Group, after: str = "") -> None:
        """Raise the failure of any rank on all ranks. A collective.

        Args:
            world: All ranks.
            after: What to add to the message.

        Raises:
            ValueError: A rank has no batch.
        """
        for said in world.gather_texts(str(self.failure or "")):
            if said:
                raise ValueError(f"{said}{after}")


def decoding_threads(device_type: str) -> int:
    """Threads that decode images where `data.threads` is not given.

    A CPU rank shares its cores with them. Beside a CUDA device they have the cores of this host to
    themselves but for one a rank, in equal parts; 8 feed some 50,000 images/s.
    """
    if device_type != "cuda":
        return 2
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return min(8, max(2, (cores or 1) // ranks - 1))
