"""The methods of other frameworks, reimplemented as baselines: two heads and a training step.

They are written in efficient torch, so that the method is compared and not its code. On a device
everything stays there; what a method itself asks of the host (`unique`, MXNet's draw) remains.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from facescale import backbones
from facescale.head import MarginHead, cosface
from facescale.training.precision import round_convolutions, trunk_autocast

SCALE, MARGIN, LR, MOMENTUM, WEIGHT_DECAY, CLIP_NORM = 64.0, 0.4, 0.1, 0.9, 5e-4, 5.0


def margin_loss(
    embeddings: Tensor, labels: Tensor, centres: Tensor, precision: str = "float32"
) -> Tensor:
    """CosFace loss () over all rows of `centres` as one dense matrix.

    In bf16 and fp16 the product is one of autocast, and the softmax is float32.
    """
    with trunk_autocast(embeddings.device.type, precision):
        cosine = functional.linear(functional.normalize(embeddings), functional.normalize(centres))
    logits = cosine.to(centres.dtype).clamp(-1.0, 1.0)
    rows = torch.arange(len(labels), device=labels.device)
    logits = logits.index_put((rows, labels), logits[rows, labels] - MARGIN)
    return functional.cross_entropy(logits * SCALE, labels)


def settle_torch(device: torch.device | str, precision: str) -> None:
    """Let torch choose convolutions, and round them to tf32 or not, as our trainer does."""
    round_convolutions(precision == "tf32")
    torch.backends.cudnn.benchmark = torch.device(device).type == "cuda"


class DenseHead:
    """As arcface_torch: sampled rows by indexing, so a dense gradient and a dense SGD step."""

    def __init__(
        self,
        num_classes: int,
        dim: int,
        sample_rate: float,
        device: torch.device | str = "cpu",
        precision: str = "float32",
    ) -> None:
        self.weight = nn.Parameter(torch.empty(num_classes, dim, device=device).normal_(std=0.01))
        self.precision = precision
        self.optimizer = torch.optim.SGD(
            [self.weight], LR, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY
        )
        self.num_sample = int(sample_rate * num_classes)

    def step(self, embeddings: Tensor, labels: Tensor) -> None:
        """Forward, backward and update; embeddings (b, dim) get their gradient."""
        centres: Tensor = self.weight
        if self.num_sample < len(self.weight):
            order = torch.rand(len(self.weight), device=self.weight.device)
            order[labels.unique()] = 2.0
            rows = order.topk(self.num_sample).indices.sort().values
            centres, labels = self.weight[rows], torch.searchsorted(rows, labels)
        self.optimizer.zero_grad()
        margin_loss(embeddings, labels, centres, self.precision).backward()
        self.optimizer.step()


class SampledHead:
    """As MXNet's Partial FC: gather rows of weight and momentum, dense step, scatter them back."""

    def __init__(
        self, num_classes: int, dim: int, sample_rate: float, device: torch.device | str = "cpu"
    ) -> None:
        self.weight = torch.empty(num_classes, dim, device=device).normal_(std=0.01)
        self.momentum = torch.zeros(num_classes, dim, device=device)
        self.num_sample = int(sample_rate * num_classes)
        self.random = np.random.default_rng(0)

    def step(self, embeddings: Tensor, labels: Tensor) -> None:
        """Forward, backward and update; embeddings (b, dim) get their gradient."""
        rows = self._draw(labels)
        weight, momentum = self.weight[rows].requires_grad_(), self.momentum[rows]
        margin_loss(embeddings, torch.searchsorted(rows, labels), weight).backward()
        with torch.no_grad():
            assert weight.grad is not None
            momentum.mul_(MOMENTUM).add_(weight.grad + WEIGHT_DECAY * weight)
            weight.sub_(LR * momentum)
            self.weight[rows], self.momentum[rows] = weight, momentum

    def _draw(self, labels: Tensor) -> Tensor:
        everything, positives = np.arange(len(self.weight)), np.unique(labels.cpu().numpy())
        if self.num_sample == len(everything):
            return torch.from_numpy(everything).to(labels.device)
        others = np.setdiff1d(everything, positives)
        drawn = self.random.choice(others, self.num_sample - len(positives), replace=False)
        return torch.from_numpy(np.sort(np.concatenate([positives, drawn]))).to(labels.device)


class OwnHead:
    """`MarginHead` with the same interface."""

    def __init__(
        self,
        num_classes: int,
        dim: int,
        sample_rate: float,
        device: torch.device | str = "cpu",
        **options: Any,
    ) -> None:
        """`options` are further ones of `MarginHead`: `dtype`, `products`."""
        self.head = MarginHead(
            num_classes,
            dim,
            cosface(MARGIN),
            SCALE,
            sample_rate,
            momentum=MOMENTUM,
            weight_decay=WEIGHT_DECAY,
            device=device,
            **options,
        )
        self.head.centres.start_()

    def step(self, embeddings: Tensor, labels: Tensor) -> None:
        """Forward, backward and update; embeddings (b, dim) get their gradient."""
        self.head(embeddings, labels, LR).backward()


class TorchStep:
    """As arcface_torch: a network of torch's own layers, contiguous images (b, 3, h, w).

    In bf16 and fp16 the network runs under autocast, and fp16 has a gradient scaler. The gradient
    scaler asks the device for overflows once a step, as it does there.
    """

    def __init__(
        self,
        network: str,
        head: Callable[[int], DenseHead | SampledHead],
        device: torch.device | str = "cpu",
        precision: str = "float32",
    ) -> None:
        """`head` makes a head for embeddings of a given dimension."""
        settle_torch(device, precision)
        backbone = backbones.build(network)
        self.embedding_dim = backbone.embedding_dim
        self.backbone = backbone.train().to(device)
        self.precision, self.device_type = precision, torch.device(device).type
        self.scaler = torch.amp.GradScaler(self.device_type, enabled=precision == "fp16")
        self.head = head(self.embedding_dim)
        learning = [p for p in self.backbone.parameters() if p.requires_grad]
        self.optimizer = torch.optim.SGD(learning, LR, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)

    def step(self, images: Tensor, labels: Tensor) -> None:
        """Forward, backward, clip and update; images are float32 pixels (b, 3, 112, 112)."""
        with trunk_autocast(self.device_type, self.precision):
            embeddings = self.backbone(images)
        # The scale of the trunk's gradients; the head's own update needs none.
        scale = self.scaler.scale(torch.ones((), device=embeddings.device))
        embeddings.register_hook(lambda gradient: gradient * scale)
        self.head.step(embeddings, labels)
        self.scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_(self.backbone.parameters(), CLIP_NORM)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
