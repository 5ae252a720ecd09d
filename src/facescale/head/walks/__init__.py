"""Walks over the drawn rows of a step, one file a device or language.

A walk is a class like `Walk`. `register_walk` adds one, from this package or from outside of it.
"""

from typing import Protocol

from torch import Tensor

from facescale.head.step import Step
from facescale.head.walks.blocks import BlockWalk
from facescale.head.walks.cpu import CompiledWalk
from facescale.head.walks.cuda import CudaWalk


class Walk(Protocol):
    """Goes over the drawn rows of this shard, once in each direction."""

    defers: bool
    """Whether it moves nothing where `step.bad` says so. Else the host reads that flag first."""

    @staticmethod
    def serves(step: Step) -> bool:
        """Whether this walk can do the step: its device, its row format."""
        ...

    def __init__(self, step: Step) -> None: ...

    def forward(self) -> tuple[Tensor, Tensor]:
        """Log-sum-exp of each sample's other classes here, and its own cosine; (B,), (B,).

        The own cosine is 0 where the class is on another shard.
        """
        ...

    def backward(
        self, log_sum: Tensor, own_cosine: Tensor, to_own: Tensor, factor: Tensor
    ) -> Tensor:
        """Move the centres; returns the gradient of the batch by this shard's rows.

        Args:
            log_sum: Of all logits of each sample, over all shards; (B,).
            own_cosine: Of each sample, whatever shard its class is on; (B,).
            to_own: Gradient of each sample's own logit, for a gradient of one of its loss; (B,).
            factor: Gradient of a logit's cosine / that of the logit; ().

        Returns:
            (B, dim).
        """
        ...


WALKS: list[type[Walk]] = [CudaWalk, CompiledWalk, BlockWalk]
"""The first that serves a step does it; `BlockWalk` serves every step."""


def register_walk(walk: type[Walk]) -> type[Walk]:
    """Try `walk` before all others. Returns it, so that it may decorate the class."""
    walk.defers = getattr(walk, "defers", False)
    WALKS.insert(0, walk)
    return walk


def make_walk(step: Step) -> Walk:
    """The first walk that serves a step."""
    return next(walk for walk in WALKS if walk.serves(step))(step)
