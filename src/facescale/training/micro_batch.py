"""A large batch in little memory: the backbone sees it in portions, the head sees it whole."""

from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from facescale.training.recompute import again


class MicroBatches(nn.Module):
    """Embeds a batch `size` images at a time and keeps nothing of the way but the embeddings.

    The backward pass walks each portion again, with the same dropout, and then back through it. So
    activations of one portion exist at a time, for one more forward pass. BatchNorm normalises
    with the statistics of a portion, not of the batch; its running statistics take in each portion
    once. `size` None embeds the batch as it is.
    """

    def __init__(self, backbone: nn.Module, size: int | None = None) -> None:
        super().__init__()
        self.backbone = backbone
        self.size = size

    def forward(self, images: Tensor) -> Tensor:
        """(b, 3, height, width) to (b, dim)."""
        if self.size is None or len(images) <= self.size:
            embeddings: Tensor = self.backbone(images)
            return embeddings
        contexts = partial(again, self.backbone)
        portions = [
            checkpoint(self.backbone, portion, use_reentrant=False, context_fn=contexts)
            for portion in torch.split(images, self.size)
        ]
        return torch.cat(portions)
