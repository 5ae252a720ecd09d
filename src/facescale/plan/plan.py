"""How much memory a run will need on each device, said before it runs and without the device.

The backbone's share is counted on fake tensors, the head's on a small head (see `costs.py`). What
is beyond tensors - the process itself, and the holes in its heap - is a rule with a measured
constant, stated below. Those of a GPU are in `cards.py`.
"""

from dataclasses import dataclass, replace
from functools import cached_property

from facescale.config import Config
from facescale.distributed import shard_range
from facescale.head.share import joint_limit
from facescale.head.step import LOGITS_BUDGET
from facescale.plan import cards
from facescale.plan.costs import BackboneCost, HeadCost, backbone_cost, head_cost
from facescale.plan.search import largest
from facescale.training.state import centres_momentum, rows_dtype

KERNELS = 27 << 20
"""Code of torch that the first step loads, on the CPU; measured with torch 2.13."""
HOLES_ACTIVATIONS, HOLES_GRADIENTS = 1 / 3, 1 / 2
"""How far glibc's heap grows beyond the tensors alive, as a share of what was allocated.

Freed memory stays with the process (`allocator.py`), and `posix_memalign` cannot use a freed block
for the same size again (`kernels/cpu/workspace.py`). The shares are a fit: docs/benchmark.md.
"""
BUCKET = 25 << 20
"""Bytes of gradients that DDP sends at once: its default."""
IMAGE_BYTES = 3 * 112 * 112


@dataclass(frozen=True)
class Plan:
    """What one device holds at the fullest moment of a step; bytes."""

    batch: int
    num_classes: int
    parts: dict[str, int]
    memory: int | None

    @property
    def total(self) -> int:
        """All parts together."""
        return sum(self.parts.values())

    @property
    def fits(self) -> bool:
        """Whether that is within `memory`."""
        return self.memory is None or self.total <= self.memory


@dataclass(frozen=True)
class Planner:
    """Predicts one run on so many devices, for any batch and any number of identities."""

    config: Config
    devices: int
    device_type: str = "cpu"
    process: int = 330 << 20
    """Bytes of a process that has imported everything and trained nothing."""

    def __post_init__(self) -> None:
        if self.devices < 1:
            raise ValueError(f"devices must be at least 1, got {self.devices}")
        if self.devices % self.shards or self.shards < 1:
            raise ValueError(
                f"head.shards is {self.shards}, but must divide the number of devices "
                f"({self.devices})"
            )

    @property
    def shards(self) -> int:
        """Parts of the class centres."""
        return self.devices if self.config.head.shards is None else self.config.head.shards

    @property
    def batch(self) -> int:
        """Samples of one device, as the config has it."""
        train = self.config.train
        return (
            -(-train.global_batch_size // self.devices)
            if train.global_batch_size
            else (train.batch_size)
        )

    def rows(self, num_classes: int) -> int:
        """Class centres of the fullest shard."""
        return len(shard_range(num_classes, self.shards, 0))

    def plan(self, batch: int, num_classes: int, memory: int | None = None) -> Plan:
        """The parts of memory on the device that needs most."""
        backbone = self._backbone(batch)
        samples = self._head_samples(batch)
        head = head_cost(
            self.rows(num_classes),
            self.config.head.sample_rate,
            backbone.embedding_dim,
            samples,
            self.device_type,
            rows_dtype(self.config),
            centres_momentum(self.config),
            self.config.head.subcentres,
            self.config.optim.head_name,
            self._logits_budget(memory),
        )
        if self._in_kernels:
            head = self._on_card(head, num_classes, samples, backbone, memory)
        in_head = head.logits + head.temporaries
        going_back = backbone.peak - backbone.activations
        # The kernels' rows move while the backbone learns, and what they use lives as long.
        overlaps = self._in_kernels and self.config.head.overlap
        free = head.temporaries if overlaps else in_head
        if self.devices > 1:  # gradients go to DDP's buckets, which are counted as communication
            going_back -= backbone.gradients
        parts = {
            "weights": backbone.weights,
            "optimiser": backbone.optimiser,
            "class centres and momentum": head.centres,
            "activations": backbone.activations,
            "logits, head": in_head,
            "gradients": max(0, going_back - free),
            "communication": self._communication(backbone, batch * self.shards),
            **self._overhead(backbone, batch),
        }
        return Plan(batch, num_classes, parts, memory)

    def _head_samples(self, batch: int) -> int:
        """Samples of a step of the head: of the shard group, or of all ranks where it is joint."""
        others = batch * (self.devices - self.shards)
        joint = others <= joint_limit(self.device_type)
        return batch * (self.devices if joint else self.shards)

    def _logits_budget(self, memory: int | None) -> int:
        """Bytes of logits that are kept for the backward pass."""
        chosen = self.config.head.logits_mib
        if chosen is not None:
            return chosen << 20
        return cards.budget(memory) if self.device_type == "cuda" else LOGITS_BUDGET

    @cached_property
    def _in_kernels(self) -> bool:
        """Whether the CUDA walk takes the steps of the head."""
        dim = self._at_two_batches[0][1].embedding_dim
        return self.device_type == "cuda" and cards.serves(self.config, dim)

    def _on_card(
        self,
        head: HeadCost,
        num_classes: int,
        samples: int,
        backbone: BackboneCost,
        memory: int | None,
    ) -> HeadCost:
        """The head's cost by the CUDA walk."""
        chosen, dim, rows = self.config.head, backbone.embedding_dim, self.rows(num_classes)
        sampled = chosen.sample_rate < 1.0
        drawn = max(1, int(chosen.sample_rate * rows)) + samples if sampled else rows
        budget = self._logits_budget(memory)
        walk = cards.walk_cost(drawn, samples, dim, chosen.products, budget, sampled)
        draw = cards.DRAW_BYTES * drawn if sampled else 0  # before there are activations
        return HeadCost(
            centres=head.centres + rows,  # a flag for each, whether it has start values
            logits=walk.kept,
            temporaries=max(walk.temporaries, draw - walk.kept - backbone.activations),
        )

    def largest_batch(self, num_classes: int, memory: int) -> int:
        """Samples of one device that still fit; 0 where none does."""
        return largest(
            lambda batch: self.plan(batch, num_classes, memory).fits, self.batch, precision=0.01
        )

    def most_identities(self, batch: int, memory: int) -> int:
        """Identities of the whole world that still fit; 0 where none does."""
        return largest(lambda count: self.plan(batch, count, memory).fits, 100_000, precision=0.001)

    @cached_property
    def _at_two_batches(self) -> tuple[tuple[int, BackboneCost], tuple[int, BackboneCost]]:
        batch = max(2, self.batch)
        low, high = (
            backbone_cost(self.config, size, self.device_type) for size in (batch, 2 * batch)
        )
        return (batch, low), (2 * batch, high)

    def _backbone(self, batch: int) -> BackboneCost:
        """The cost at `batch`: counted at the config's and at twice it, on a straight line else."""
        (low, at_low), (high, at_high) = self._at_two_batches
        share = (batch - low) / (high - low)

        def line(first: int, second: int) -> int:
            return int(first + share * (second - first))

        activations = line(at_low.activations, at_high.activations)
        peak = max(line(at_low.peak, at_high.peak), activations)
        return replace(at_low, activations=activations, peak=peak)

    def _communication(self, backbone: BackboneCost, group_batch: int) -> int:
        """Gradients that lie in DDP's buckets from step to step, and the gathered embeddings."""
        if self.devices == 1:
            return 0
        gathered = 4 * group_batch * 4 * backbone.embedding_dim  # payload, parts, sum, its share
        return backbone.gradients + min(2 * BUCKET, backbone.gradients) + gathered

    def _overhead(self, backbone: BackboneCost, batch: int) -> dict[str, int]:
        """What is no tensor of the step."""
        if self.device_type != "cpu":
            return {
                "holes between blocks": int(cards.HOLES * backbone.peak),
                "workspaces": cards.WORKSPACES,
                "CUDA context": cards.CONTEXT,
            }
        holes = HOLES_ACTIVATIONS * backbone.activations + HOLES_GRADIENTS * backbone.gradients
        return {
            "image batches": (self.config.data.prefetch + 1) * batch * IMAGE_BYTES,
            "holes in the heap": int(holes),
            "process": self.process + KERNELS,
        }
