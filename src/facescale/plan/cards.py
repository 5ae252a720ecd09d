"""What a step takes on a GPU beyond the backbone's tensors.

The head's buffers follow from its kernels. What no tensor is - CUDA's context, workspaces of its
libraries, holes between the allocator's blocks - are rules. No GPU has confirmed either.
"""

from dataclasses import dataclass, replace

import torch

from facescale.config import Config
from facescale.head.step import LOGITS_BUDGET, logits_budget
from facescale.kernels.cuda import assumed
from facescale.kernels.cuda.tiles import SPLITS, Precision, tile_for
from facescale.training.state import make_head

CARD = torch.device("cuda")

CONTEXT = 600 << 20
"""Of the driver and loaded kernels: 0.5 to 0.7 GB on current GPUs."""
WORKSPACES = 256 << 20
"""Of cuBLAS (32 MiB a stream on Hopper) and of cuDNN's algorithms."""
HOLES = 0.05
"""Of all tensors that come and go in a step: free blocks that are too small for the next one."""
LEAST_ROWS = 1 << 14
"""As `head.walks.cuda.LEAST_ROWS`."""
DRAW_BYTES = 100
"""Of a drawn row, while its number is computed: permutations in int64."""


@dataclass(frozen=True)
class WalkCost:
    """Bytes of the CUDA walk in one step."""

    kept: int
    """From the forward pass to the end of the update: logits, row numbers, lengths, the batch."""
    temporaries: int
    """Most at once of what one pass needs for itself."""


def serves(config: Config, dim: int) -> bool:
    """Whether the CUDA walk takes the steps of a run's head, with triton as it is here.

    A small head on the CPU says so.
    """
    alone = replace(config, head=replace(config.head, shards=1))
    with assumed():
        return make_head(alone, 2, dim, torch.device("cpu")).defers


def budget(memory: int | None) -> int:
    """Bytes of logits kept by default on a GPU of so much memory, or on the GPU here."""
    if memory is None and not torch.cuda.is_available():
        return LOGITS_BUDGET
    return logits_budget(CARD, memory)


def walk_cost(
    drawn: int, samples: int, dim: int, products: Precision, budget: int, sampled: bool
) -> WalkCost:
    """The buffers of `CudaWalk`.

    Args:
        drawn: Rows of the step, empty slots included.
        samples: Of the batch of the shard group, or of all ranks for a joint step.
        dim: Size of an embedding.
        products: As `head.products`.
        budget: Bytes of logits.
        sampled: Whether the rows have numbers, or are all.
    """
    batch = samples * dim
    rows = min(drawn, budget // (4 * max(samples, 1)))
    numbers = 8 * drawn if sampled else 0
    # Unit embeddings with norms and as they are gathered, and rounded ones.
    embeddings = 12 * batch + (2 * batch if products == "bf16" else 0)
    kept = 4 * rows * samples + numbers + 8 * drawn + embeddings
    blocks = -(-drawn // tile_for("forward", products, CARD).rows)
    tile = tile_for("to_batch", products, CARD).rows
    portion = max(rows, min(LEAST_ROWS, drawn), 1)
    parts = -(-portion // (-(-portion // (SPLITS * tile)) * tile))
    again = 4 * samples * min(max(rows, LEAST_ROWS), drawn - rows)
    backward = 4 * batch * (parts + 2) + again
    return WalkCost(kept, max(8 * blocks * samples, backward))
