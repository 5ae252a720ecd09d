"""What the host learns of a step after it has queued it: whether loss and gradient were finite."""

from dataclasses import dataclass

import torch
from torch import Tensor

from facescale.data.loader import Batch
from facescale.head.late import LateNumbers


@dataclass(frozen=True)
class Pending:
    """A step that was queued on the device, and changed nothing where its numbers are bad."""

    step: int
    batch: Batch
    numbers: LateNumbers
    """Whether the loss, and whether the gradient, is not finite."""


def learn_unless_(optimizer: torch.optim.Optimizer, bad: Tensor) -> None:
    """A step of a fused optimizer that changes nothing where `bad`, () of bool, is true."""
    # As torch's GradScaler asks them to.
    optimizer.found_inf = bad.float()  # type: ignore[attr-defined]
    try:
        optimizer.step()
    finally:
        del optimizer.found_inf  # type: ignore[attr-defined]
