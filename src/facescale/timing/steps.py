"""Forward and backward pass of the backbone, and the whole training step."""

from collections.abc import Callable, Iterator
from dataclasses import fields
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from facescale import backbones
from facescale.backbones.backbone import IMAGE_SHAPE
from facescale.config import (
    BackboneConfig,
    Config,
    DataConfig,
    HeadConfig,
    MarginConfig,
    OptimConfig,
    TrainConfig,
)
from facescale.data.loader import Batch
from facescale.plan.costs import BackboneCost, backbone_cost
from facescale.timing.baselines import (
    CLIP_NORM,
    LR,
    MARGIN,
    DenseHead,
    SampledHead,
    TorchStep,
    settle_torch,
)
from facescale.timing.interleave import Case, Contender, Prepare
from facescale.training.precision import trunk_autocast
from facescale.training.state import TrainState, build
from facescale.training.step import train_step

PROCESS = 400 << 20  # bytes of a process with all imports
HOLES = 1.4  # size of the heap as a multiple of the live tensors


def backbone(network: str, batch: int = 64, *, name: str = "backbone", device: str = "cpu") -> Case:
    """Forward from images to embeddings, backward from a random gradient; no update."""
    config = config_of(network, batch, identities=2, rate=1.0)
    memory = _memory(backbone_cost(config, batch, device))
    return Case(
        name=name,
        title=f"backbone {network}, batch {batch}, forward and backward",
        contenders=(
            Contender("facescale", partial(_own_backbone, config, batch, device), memory).tuned(),
            *Contender("torch", partial(_torch_backbone, network, batch, device), memory).both(
                device
            ),
        ),
        samples=batch,
        flop=flop(network) * batch,
        device=device,
    )


def step(
    network: str,
    batch: int = 64,
    identities: int = 85_742,
    rate: float = 1.0,
    *,
    name: str = "step",
    device: str = "cpu",
) -> Case:
    """A whole training step: backbone, head, gradient clipping and all updates."""
    config = config_of(network, batch, identities, rate)
    cost = backbone_cost(config, batch, device)
    dim, rows = cost.embedding_dim, int(identities * rate)

    def contender(title: str, build: Callable[[], Prepare], copies: float) -> Contender:
        head = 4.0 * dim * copies * identities + 3 * 4.0 * rows * batch
        return Contender(title, build, _memory(cost) + head)

    def torchs(title: str, kind: type[DenseHead] | type[SampledHead], copies: float) -> Contender:
        build = partial(_torch_step, network, kind, batch, identities, rate, device)
        return contender(title, build, copies)

    return Case(
        name=name,
        title=f"step of {network}, batch {batch}, {identities:,} identities, rate {rate:g}",
        contenders=(
            contender("facescale", partial(own_step, config, device), 2.0).tuned(),
            *torchs("dense", DenseHead, 4.5).both(device),
            *torchs("sampled", SampledHead, 4.5).both(device),
        ),
        samples=batch,
        flop=flop(network) * batch + 3 * 2.0 * rows * dim * batch,
        device=device,
    )


def config_of(
    network: str, batch: int, identities: int, rate: float, *, lr: float = LR, **options: Any
) -> Config:
    """The configuration of our trainer that does the same as the baselines.

    `options` are fields of `HeadConfig`, the others of `TrainConfig`.
    """
    of_head = {name: options.pop(name) for name in list(options) if name in _HEAD}
    return Config(
        data=DataConfig(path="synthetic", num_classes=identities, num_images=1_000_000),
        backbone=BackboneConfig(name=network),
        head=HeadConfig(margin=MarginConfig(m2=0.0, m3=MARGIN), sample_rate=rate, **of_head),
        optim=OptimConfig(lr=lr, clip_norm=CLIP_NORM),
        train=TrainConfig(batch_size=batch, steps=1_000_000, **options),
    )


_HEAD = {field.name for field in fields(HeadConfig)}


def _memory(cost: BackboneCost) -> float:
    """Approximate bytes of a process that trains a backbone."""
    return PROCESS + HOLES * (cost.weights + cost.optimiser + cost.gradients + cost.peak)


@lru_cache
def flop(network: str) -> float:
    """FLOP per image, forward and backward; backward has two products for each one forward."""
    with FakeTensorMode(), torch.no_grad(), FlopCounterMode(display=False) as counter:
        backbones.build(network)(torch.empty(2, *IMAGE_SHAPE))
    return float(3 * counter.get_total_flops() / 2)


def _own_backbone(config: Config, batch: int, device: str) -> Prepare:
    state = build(config, torch.device(device))
    images = pixels(batch).to(device)
    return passes(state.model.train(), state.backbone.embedding_dim, images)


def _torch_backbone(network: str, batch: int, device: str) -> Prepare:
    settle_torch(device, "float32")
    module = backbones.build(network).to(device)
    images = pixels(batch).float().contiguous().to(device)
    return passes(module.train(), module.embedding_dim, images)


def passes(model: torch.nn.Module, dim: int, images: Tensor, precision: str = "float32") -> Prepare:
    """Forward and backward pass of a network with embeddings of `dim` numbers."""
    gradient = torch.randn(len(images), dim, device=images.device)

    def both() -> None:
        with trunk_autocast(images.device.type, precision):
            embeddings = model(images)
        embeddings.backward(gradient.to(embeddings.dtype))

    def prepare() -> Callable[[], object]:
        model.zero_grad()
        return both

    return prepare


def own_step(config: Config, device: str, state: TrainState | None = None) -> Prepare:
    """Training steps on random images and labels, which lie where the loader puts them.

    `state` is what `build` made of the config, where the caller has it.
    """
    assert config.data.num_classes is not None
    batch = config.train.batch_size
    state = build(config, torch.device(device)) if state is None else state
    images, labels = pixels(batch), _labels(batch, config.data.num_classes)
    if pinned := device != "cpu":
        images = images.pin_memory()

    def prepare() -> Callable[[], object]:
        position = state.position
        indices, chosen = np.arange(position, position + batch), next(labels)
        chosen = chosen.pin_memory() if pinned else chosen
        return partial(train_step, state, Batch(images, chosen, position, 0, indices))

    return prepare


def _torch_step(
    network: str,
    kind: type[DenseHead] | type[SampledHead],
    batch: int,
    identities: int,
    rate: float,
    device: str,
) -> Prepare:
    return torch_step(
        TorchStep(network, lambda dim: kind(identities, dim, rate, device), device),
        batch,
        identities,
        device,
    )


def torch_step(contender: TorchStep, batch: int, identities: int, device: str) -> Prepare:
    """Steps of a baseline on random images and labels, which are on its device already."""
    images = pixels(batch).float().contiguous().to(device)
    labels = _labels(batch, identities, device)
    return lambda: partial(contender.step, images, next(labels))


def pixels(batch: int) -> Tensor:
    """Random pixels in the loader's format: uint8 (batch, 3, 112, 112), channels last."""
    random = torch.Generator().manual_seed(1)
    pixels = torch.randint(256, (batch, *IMAGE_SHAPE), dtype=torch.uint8, generator=random)
    return pixels.to(memory_format=torch.channels_last)


def _labels(batch: int, identities: int, device: str = "cpu") -> Iterator[Tensor]:
    """Random labels (batch,), new ones each time."""
    random = torch.Generator(device).manual_seed(1)
    while True:
        yield torch.randint(identities, (batch,), generator=random, device=device)
