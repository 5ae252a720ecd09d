"""What one step of the head is made of, from the forward to the backward pass."""

from dataclasses import dataclass

from torch import Tensor

from facescale.distributed import Group
from facescale.head.centres import ClassCentres
from facescale.head.margins import Margin


@dataclass(frozen=True)
class Step:
    """One step. The shard group's batch has B samples, of which `mine` are this rank's."""

    centres: ClassCentres
    shard: Group
    replicate: Group
    margin: Margin
    scale: float
    lr: float
    momentum: float
    weight_decay: float
    batch: Tensor
    """Unit embeddings of the shard group's batch; (B, dim)."""
    counts: list[int]
    """Samples of each rank of the shard group; they sum to B."""
    global_batch: int
    rows: Tensor | None
    """Rows of this shard that were drawn, sorted; None: all."""
    own_row: Tensor
    """Place among the drawn rows of the own class of each sample whose class is here; sorted."""
    own_sample: Tensor
    """Which sample that is."""
    logits_budget: int
    """Bytes of logits that may be kept for the backward pass; others are computed again."""

    @property
    def num_rows(self) -> int:
        """Rows that join this step's softmax here."""
        return len(self.centres) if self.rows is None else len(self.rows)

    @property
    def mine(self) -> slice:
        """The rows of `batch` that this rank brought."""
        first = sum(self.counts[: self.shard.rank])
        return slice(first, first + self.counts[self.shard.rank])
