"""What a training step costs in memory, taken from the real modules on small or fake tensors."""

from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal, NamedTuple

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from facescale.backbones.backbone import IMAGE_SHAPE, Backbone
from facescale.config import BackboneConfig, Config, OptimConfig, TrainConfig
from facescale.distributed import Group
from facescale.head import MarginHead
from facescale.head.rules import RuleName
from facescale.head.step import LOGITS_BUDGET
from facescale.head.walks.blocks import block_rows
from facescale.kernels.cuda import assumed
from facescale.plan.ledger import Ledger
from facescale.training.micro_batch import MicroBatches
from facescale.training.optim import make_optimizer
from facescale.training.precision import PRECISIONS, settled, trunk_autocast
from facescale.training.state import make_backbone, memory_layout
from facescale.training.sync_batchnorm import synchronise_norms_

_PROBED = (128, 256)  # rows of one block, and samples: the cost is linear in either


@dataclass(frozen=True)
class BackboneCost:
    """Bytes of a backbone in training with one batch."""

    embedding_dim: int
    weights: int
    """Parameters and running statistics."""
    optimiser: int
    """Momentum, or what else the optimiser keeps; an average, sums of gradients."""
    gradients: int
    activations: int
    """Alive when the embeddings are there: what the backward pass will need."""
    peak: int
    """Most at once of activations, gradients and temporaries."""


def backbone_cost(config: Config, batch: int, device_type: str = "cpu") -> BackboneCost:
    """The cost of one step of the backbone with `batch` images on a device."""
    train = settled(config, device_type).train
    fused = device_type == "cuda" if config.optim.fused is None else config.optim.fused
    cost = _walk(
        replace(config.backbone, weights=None),
        OptimiserKind(config.optim.name, config.optim.momentum, fused),
        PRECISIONS[train.precision].itemsize,
        train.micro_batch,
        train.channels_last,
        train.sync_batchnorm,
        train.recompute,
        batch,
        device_type,
    )
    kept = (config.optim.ema is not None) * cost.weights + (train.accumulate > 1) * cost.gradients
    return replace(cost, optimiser=cost.optimiser + kept)


class OptimiserKind(NamedTuple):
    """Those of the fields of `OptimConfig` on which its state depends."""

    name: Literal["sgd", "adamw"]
    momentum: float
    fused: bool


_OF_SIZE: dict[int, Literal["float64", "float32", "bf16"]] = {8: "float64", 4: "float32", 2: "bf16"}
"""A precision that stands for all with numbers of so many bytes."""


@lru_cache(maxsize=64)
def _walk(
    backbone: BackboneConfig,
    optimiser: OptimiserKind,
    itemsize: int,
    micro_batch: int | None,
    channels_last: bool,
    sync_batchnorm: bool,
    recompute: bool | None,
    batch: int,
    device_type: str,
) -> BackboneCost:
    """Walk one step of the backbone on fake tensors, which have shapes but no memory.

    Fake CPU tensors stand for those of any device; only the layers are the device's. BatchNorm over
    all ranks is one over the only rank, which keeps as much. Weights are float32.
    """
    train = TrainConfig(
        precision=_OF_SIZE[itemsize],
        micro_batch=micro_batch,
        channels_last=channels_last,
        recompute=recompute,
    )
    optim = OptimConfig(**optimiser._asdict())
    config = Config(backbone=backbone, optim=optim, train=train)
    layout, fake = memory_layout(train), FakeTensorMode()
    network = _fake_network(fake, config, device_type)
    if sync_batchnorm:
        synchronise_norms_(network, Group())
    model = MicroBatches(network, train.micro_batch).train()
    with fake:
        optimizer = make_optimizer(network, optim)
    on_card = assumed() if device_type == "cuda" else nullcontext()
    with on_card, fake, Ledger() as ledger:
        images = torch.empty((batch, *IMAGE_SHAPE), dtype=torch.uint8, memory_format=layout)
        with trunk_autocast("cpu", train.precision):
            embeddings = model(images)
        activations = ledger.live
        embeddings.backward(torch.empty_like(embeddings))
        peak = ledger.peak
    with fake:
        optimizer.step()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    return BackboneCost(
        embedding_dim=network.embedding_dim,
        weights=_num_bytes(*network.parameters(), *network.buffers()),
        optimiser=_num_bytes(*(t for s in optimizer.state.values() for t in s.values())),
        gradients=_num_bytes(*parameters),
        activations=activations,
        peak=peak,
    )


def _fake_network(fake: FakeTensorMode, config: Config, device_type: str) -> Backbone:
    layout = memory_layout(config.train)
    with fake:
        network = make_backbone(config, torch.device(device_type))
        for weight in network.parameters():  # fake ones refuse Module.to
            if weight.ndim == 4:
                weight.data = weight.data.contiguous(memory_format=layout)
    return network


def _num_bytes(*values: object) -> int:
    return sum(value.nbytes for value in values if isinstance(value, torch.Tensor))


@dataclass(frozen=True)
class HeadCost:
    """Bytes of the head on one rank."""

    centres: int
    """Weights and momentum of this rank's class centres."""
    logits: int
    """Kept between forward and backward."""
    temporaries: int
    """One block's own, and what is needed once for a batch."""


def head_cost(
    rows: int,
    sample_rate: float,
    dim: int,
    batch: int,
    device_type: str = "cpu",
    stored: torch.dtype = torch.float32,
    momentum: float = 0.9,
    subcentres: int = 1,
    optimizer: RuleName = "sgd",
    budget: int = LOGITS_BUDGET,
) -> HeadCost:
    """The cost of `rows` classes on a rank whose shard group brings `batch` embeddings.

    `stored`, `momentum`, `subcentres` and `optimizer` are those of `MarginHead`: they decide the
    bytes of a class. `budget` bounds the bytes of logits that are kept.

    The real head walks two small blocks on the CPU; the rest is a straight line in the rows.
    """
    drawn = min(rows, max(1, int(sample_rate * rows)) + (batch if sample_rate < 1 else 0))
    block = min(drawn, max(1, block_rows(device_type) // subcentres))
    kept = min(drawn, budget // (4 * batch))
    draw = _DRAW_BYTES * drawn if sample_rate < 1 else 0
    kind = Kind(stored, momentum, subcentres, optimizer)
    walk = _block_bytes(block, sample_rate < 1, dim, batch, kind)
    return HeadCost(
        centres=rows * _row_bytes(dim, kind),
        logits=4 * kept * batch,
        temporaries=max(walk, draw - 4 * kept * batch),
    )


_DRAW_BYTES = 100
"""Of a drawn row, while a sample is drawn: its number and the sort that makes numbers distinct."""


class Kind(NamedTuple):
    """What decides the bytes of a class: options of `MarginHead`."""

    dtype: torch.dtype
    momentum: float
    subcentres: int
    optimizer: RuleName


def _block_bytes(rows: int, sampled: bool, dim: int, batch: int, kind: Kind) -> int:
    """What a step over one block needs beside its logits, from four small ones."""
    low, high = _PROBED
    x, y = ((size - low) / (high - low) for size in (rows, batch))
    base, by_rows, by_batch, by_both = (
        _probe(r, sampled, dim, b, kind)
        for r, b in ((low, low), (high, low), (low, high), (high, high))
    )
    both = by_both - by_rows - by_batch + base
    return max(0, int(base + x * (by_rows - base) + y * (by_batch - base) + x * y * both))


@lru_cache(maxsize=64)
def _probe(rows: int, sampled: bool, dim: int, batch: int, kind: Kind) -> int:
    """Most bytes at once of a real step over one block of `rows`, without its kept logits."""
    rate = 0.5 if sampled else 1.0
    head = MarginHead(int(rows / rate), dim, sample_rate=rate, shards=1, **kind._asdict())
    embeddings = torch.randn(batch, dim, requires_grad=True)
    head.centres.start_()
    with Ledger() as ledger:
        labels = torch.arange(batch) % (rows // 2)
        head(embeddings, labels, lr=0.1).backward()
    return max(0, int(ledger.peak) - 4 * rows * batch)


@lru_cache(maxsize=8)
def _row_bytes(dim: int, kind: Kind) -> int:
    """Bytes of the centres of one class, with all that is kept of them."""
    head = MarginHead(64, dim, shards=1, **kind._asdict())
    return _num_bytes(*head.parameters(), *head.buffers()) // 64
