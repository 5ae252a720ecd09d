"""Whose samples are in the batch of a step, and which of them are this rank's."""

import math

import torch
from torch import Tensor

from facescale.distributed import Group, Mesh
from facescale.head.gather import gather_rows, scatter_sum

JOINT_SAMPLES = {"cpu": 128, "cuda": 1024}
"""More samples cost more time in products than in the sum that they save. CUDA is unproven."""


def joint_limit(device: torch.device | str) -> int:
    """The number of samples for a device."""
    return JOINT_SAMPLES.get(torch.device(device).type, JOINT_SAMPLES["cuda"])


class Share:
    """The batch of one step: samples of the shard group, or of all ranks.

    Copies of a shard either sum their gradients, (rows, dim), or each of them computes with the
    samples of all copies, (samples, dim). The second sends less and is `joint`; all copies choose
    it where none of them gets more than `joint_samples` from the others. Both move the centres by
    the same sums.

    Args:
        mesh: Of the head.
        counts: Samples of each rank of the world, in rank order.
        joint_samples: Of the other copies; at least 0.
    """

    def __init__(self, mesh: Mesh, counts: list[int], joint_samples: int) -> None:
        self.mesh, self.group, shards = mesh, mesh.shard, mesh.shard.size
        first = mesh.world.rank - mesh.shard.rank
        self.group_counts = counts[first : first + shards]
        start, size = sum(counts[:first]), sum(self.group_counts)
        self.groups = [sum(counts[i : i + shards]) for i in range(0, len(counts), shards)]
        """Samples of each shard group of the world."""
        self.joint = len(self.groups) > 1 and sum(counts) - min(self.groups) <= joint_samples
        self.batch = slice(None) if self.joint else slice(start, start + size)
        """Of the global batch: the samples of the step."""
        within = start if self.joint else 0
        self.ours = slice(within, within + size)
        """Of the step's batch: the samples of the shard group."""
        own = within + sum(self.group_counts[: mesh.shard.rank])
        self.mine = slice(own, own + self.group_counts[mesh.shard.rank])
        """Of the step's batch: the samples of this rank."""
        self.global_batch = max(sum(counts), 1)

    @property
    def replicate(self) -> Group:
        """Ranks whose gradients are to be summed."""
        return Group() if self.joint else self.mesh.replicate

    def gather(self, unit: Tensor, norm: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gather embeddings and norms from (b, dim) and (b,) of each rank. A collective.

        The norm of an embedding that is not finite becomes NaN.

        Returns:
            Embeddings (B, dim) and norms (B,) of the batch, and norms of the global batch.
        """
        norm = norm.where(unit.isfinite().all(dim=1), math.nan)
        both = gather_rows(self.group, torch.cat([unit, norm[:, None]], dim=1), self.group_counts)
        if self.joint:
            both = gather_rows(self.mesh.replicate, both, self.groups)
        batch, norms = both[:, :-1].contiguous(), both[:, -1].contiguous()
        return batch, norms, self.everyones(norms)

    def everyones(self, numbers: Tensor) -> Tensor:
        """Numbers of the batch (B,) to those of the global batch. A collective unless `joint`."""
        return numbers if self.joint else gather_rows(self.replicate, numbers, self.groups)

    def scatter(self, gradient: Tensor) -> Tensor:
        """Sum (B, dim) over the shards and keep the rows of this rank, (b, dim). A collective."""
        return scatter_sum(self.group, gradient[self.ours], self.group_counts)
