"""arcface_torch's training, written anew as a plain torch loop to compare `facescale train` with.

Source: insightface, `recognition/arcface_torch`: `train_v2.py`, `partial_fc_v2.py` at sample rate
1, `losses.py`, `lr_scheduler.py`, on one device. The network's definition and the verification are
facescale's. Reader, order, augmentation, head, optimizer, schedule and step are independent of it.

    PYTHONPATH=src python tests/plain_loop.py --data SET --pairs lfw.bin --steps 1500
"""

import argparse
import io
import json
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from facescale import backbones
from facescale.data.pairs import load_pairs
from facescale.evaluation.embedding import verify_pairs
from plain_reader import read_set


@dataclass(frozen=True)
class Settings:
    """What arcface_torch's configs name; those for one GPU but for network and length."""

    network: str = "r18_half"
    image_size: int = 112
    embedding_size: int = 512
    margin: tuple[float, float, float] = (1.0, 0.5, 0.0)
    scale: float = 64.0
    batch_size: int = 128
    steps: int = 1500
    warmup: int = 0
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float = 0.02
    momentum: float = 0.9
    weight_decay: float = 5e-4
    gradient_acc: int = 1
    bf16: bool = False
    seed: int = 0


def margin_logits(
    cosines: Tensor, labels: Tensor, margin: tuple[float, float, float], scale: float
) -> Tensor:
    """`CombinedMarginLoss`, (b, classes) to (b, classes): ArcFace by its `no_grad`, or CosFace."""
    m1, m2, m3 = margin
    if m1 != 1.0 or (m2 and m3):
        raise ValueError(f"margin must be (1, m2, 0) or (1, 0, m3), got {margin}")
    rows = torch.arange(len(labels), device=labels.device)
    with torch.no_grad():  # so the gradient is that of the cosine without a margin
        target = cosines[rows, labels]
        change = (target.arccos() + m2).cos() - target if m2 else torch.full_like(target, -m3)
    return cosines.index_put((rows, labels), change, accumulate=True) * scale


def head_loss(embeddings: Tensor, centres: Tensor, labels: Tensor, settings: Settings) -> Tensor:
    """Loss () of `PartialFC_V2` at sample rate 1 in float32."""
    cosines = functional.linear(functional.normalize(embeddings), functional.normalize(centres))
    logits = margin_logits(cosines.clamp(-1, 1), labels, settings.margin, settings.scale)
    return functional.cross_entropy(logits, labels)


def rate(step: int, settings: Settings) -> float:
    """Factor on the learning rate: `PolynomialLRWarmup` of power 1, in closed form."""
    if step < settings.warmup:
        return step / settings.warmup
    return 1 - (step - settings.warmup) / (settings.steps - settings.warmup)


def read_images(folder: Path, device: torch.device) -> tuple[Tensor, Tensor]:
    """All images (n, 3, 112, 112) uint8 RGB and labels (n,) of a RecordIO set."""
    records, _ = read_set(folder)
    pixels = [np.asarray(Image.open(io.BytesIO(image)).convert("RGB")) for _, image in records]
    images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous()
    labels = torch.tensor([int(label) for label, _ in records])
    return images.to(device), labels.to(device)


def batches(
    images: Tensor, labels: Tensor, settings: Settings, random: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless batches: a new order each epoch, its rest dropped, half of the images mirrored."""
    size = settings.batch_size
    while True:
        order = torch.randperm(len(images), generator=random).to(images.device)
        for chosen in order[: len(order) // size * size].split(size):
            mirrored = torch.rand(size, generator=random).to(images.device) < 0.5
            batch = images[chosen]
            yield torch.where(mirrored[:, None, None, None], batch.flip(3), batch), labels[chosen]


@dataclass
class Learner:
    """What `train_v2.py` has in memory."""

    backbone: nn.Module
    centres: nn.Parameter
    """(classes, embedding_size)."""
    optimizer: torch.optim.Optimizer
    settings: Settings
    batches: int = 0

    def step(self, images: Tensor, labels: Tensor) -> Tensor:
        """Learn from a batch; returns its loss, ()."""
        bf16 = torch.autocast(images.device.type, torch.bfloat16)
        with bf16 if self.settings.bf16 else nullcontext():
            embeddings = self.backbone(images)
        loss = head_loss(embeddings.to(self.centres.dtype), self.centres, labels, self.settings)
        loss.backward()
        self.batches += 1
        if self.batches % self.settings.gradient_acc == 0:
            nn.utils.clip_grad_norm_(self.backbone.parameters(), 5)
            self.optimizer.step()
            self.optimizer.zero_grad()
        return loss.detach()


def make_learner(
    num_classes: int, settings: Settings, device: torch.device, random: torch.Generator
) -> Learner:
    """Fresh weights, and the optimizer of `settings` with two groups of parameters."""
    backbone = backbones.build(
        settings.network,
        settings.embedding_size,
        family="arcface_torch",
        image_size=settings.image_size,
        generator=random,
    )
    backbone = backbone.to(device).train()
    centres = torch.empty(num_classes, settings.embedding_size).normal_(0, 0.01, generator=random)
    centres = nn.Parameter(centres.to(device))
    groups: list[dict[str, Any]] = [{"params": backbone.parameters()}, {"params": [centres]}]
    lr, decay = settings.lr, settings.weight_decay
    optimizer: torch.optim.Optimizer
    if settings.optimizer == "adamw":
        optimizer = torch.optim.AdamW(groups, lr, weight_decay=decay)
    else:
        optimizer = torch.optim.SGD(groups, lr, momentum=settings.momentum, weight_decay=decay)
    return Learner(backbone, centres, optimizer, settings)


def train(
    data: tuple[Tensor, Tensor], num_classes: int, settings: Settings
) -> tuple[nn.Module, list[float]]:
    """The trained backbone and the loss of each step.

    Args:
        data: Images and labels, as `read_images` returns them, on the device that trains.
        num_classes: Identities.
        settings: Of the run.
    """
    device = data[0].device
    random = torch.Generator().manual_seed(settings.seed)
    learner = make_learner(num_classes, settings, device, random)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        learner.optimizer, lambda step: rate(step, settings)
    )
    losses = []
    for images, labels in islice(batches(*data, settings, random), settings.steps):
        losses.append(learner.step(images, labels))
        schedule.step()
    return learner.backbone, torch.stack(losses).tolist()


def main() -> None:
    """Train, verify, and print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--pairs", type=Path, required=True)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    for name in ("network", "image_size", "batch_size", "steps", "warmup", "lr", "seed"):
        value = getattr(Settings, name)
        parser.add_argument(f"--{name}", type=type(value), default=value)
    parser.add_argument("--bf16", action="store_true")
    chosen = vars(parser.parse_args())
    folder, pairs, device = (chosen.pop(name) for name in ("data", "pairs", "device"))
    settings, began = Settings(**chosen), time.perf_counter()
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = False
    num_classes = int((folder / "property").read_text().split(",")[0])
    data = read_images(folder, torch.device(device))
    backbone, losses = train(data, num_classes, settings)
    last = losses[-100:]
    with torch.autocast(device, torch.bfloat16, enabled=settings.bf16):
        answer = verify_pairs(backbone, load_pairs(pairs), 256, device)
    row = {"seed": settings.seed, "loss": sum(last) / len(last), **answer.metrics("lfw")}
    print(json.dumps(row | {"seconds": time.perf_counter() - began}))


if __name__ == "__main__":
    main()
