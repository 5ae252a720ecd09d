"""What one step of the head is made of, from the forward to the backward pass."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from facescale.distributed import Group
from facescale.head.centres import ClassCentres
from facescale.head.draw import Sample
from facescale.head.margins.target import Others
from facescale.head.rules import SGD, Rule
from facescale.random import Key

Products = Literal["tf32x3", "tf32", "bf16"]
"""How the kernels of a CUDA device round the factors of a product; "tf32x3" is as accurate as
float32."""

LOGITS_BUDGET = 256 << 20


def logits_budget(device: torch.device, memory: int | None = None) -> int:
    """Bytes of logits that a head keeps by default.

    Args:
        device: Where the head is.
        memory: Bytes of a CUDA device; None asks the device.
    """
    if device.type != "cuda":
        return LOGITS_BUDGET
    if memory is None:
        memory = torch.cuda.get_device_properties(device).total_memory
    return max(LOGITS_BUDGET, memory // 16)


@dataclass(frozen=True)
class Step:
    """One step. Its batch has B samples: those of the shard group, or of all ranks."""

    centres: ClassCentres
    replicate: Group
    """Copies of this shard whose gradients are summed."""
    scale: float
    lr: float
    rule: Rule
    batch: Tensor
    """Unit embeddings; (B, dim)."""
    sample: Sample
    key: Key
    """Of this step's random rounding."""
    logits_budget: int
    """Bytes of logits that may be kept for the backward pass; others are computed again."""
    bad: Tensor
    """Not 0: the batch has a wrong label or an embedding that is not finite; (1,) int32."""
    products: Products = "tf32x3"
    others: Others | None = None
    """What the softmax takes for cosines to other classes; None: the cosines themselves."""
    filter_above: float | None = None
    """Where `others` is nothing but a filter: cosines above it count as 0 and get no gradient."""

    @property
    def limit(self) -> float:
        """The largest logit of another class that is not filtered."""
        return math.inf if self.filter_above is None else self.scale * self.filter_above

    @property
    def plain_rule(self) -> SGD | None:
        """SGD's rates in a step that every walk knows: one centre a class, no cosine reweighted."""
        unweighted = self.others is None or self.filter_above is not None
        plain = self.centres.subcentres == 1 and unweighted
        return self.rule if plain and isinstance(self.rule, SGD) else None
