"""What one step of the head is made of, from the forward to the backward pass."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from facescale.distributed import Group
from facescale.head.centres import ClassCentres
from facescale.head.draw import Sample
from facescale.random import Key

Products = Literal["tf32x3", "tf32", "bf16"]
"""How the kernels of a CUDA device round the factors of a product; "tf32x3" is as accurate as
float32."""


@dataclass(frozen=True)
class Step:
    """One step. Its batch has B samples: those of the shard group, or of all ranks."""

    centres: ClassCentres
    replicate: Group
    """Copies of this shard whose gradients are summed."""
    scale: float
    lr: float
    momentum: float
    weight_decay: float
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
