"""The parts of a run, put together from its config."""

from dataclasses import asdict, dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from facescale import backbones
from facescale.acceleration import accelerate_
from facescale.config import Config, TrainConfig
from facescale.data.dataset import Dataset
from facescale.data.found import Found
from facescale.data.loader import Loader
from facescale.data.pairs import PairSet
from facescale.data.transforms import Augment, augmentation
from facescale.distributed import Group, replicate, shard_range, world_group
from facescale.head import MarginHead, TargetMargin, make_margin
from facescale.head.margins import margin_values
from facescale.models.weights import family_of, load_weights_
from facescale.random import derive_seed, generator
from facescale.training.batches import decoding_threads
from facescale.training.batchsize import check_batch
from facescale.training.dataset import make_order, open_training_set
from facescale.training.graphs import capture_
from facescale.training.groups import check_graphs, freeze_, parse
from facescale.training.kept import Kept
from facescale.training.late import Pending
from facescale.training.micro_batch import MicroBatches
from facescale.training.optim import Schedule, make_optimizer, make_schedule
from facescale.training.passed_over import PassedOver
from facescale.training.precision import PRECISIONS, round_convolutions, settled, trunk_autocast
from facescale.training.recompute import recompute_
from facescale.training.sets import open_sets
from facescale.training.statistics import running_statistics
from facescale.training.sync_batchnorm import synchronise_norms_

# Keys of a run's random numbers; the head has its own.
BACKBONE, ORDER, AUGMENT, DROPOUT = range(4)


@dataclass
class TrainState:
    """All that a training step reads and writes."""

    config: Config
    device: torch.device
    world: Group
    dataset: Dataset
    found: Found
    """How many people and images the data set has, and who they are."""
    pairs: list[PairSet]
    augment: Augment
    backbone: backbones.Backbone
    """The network itself: what is verified and saved."""
    model: nn.Module
    """The network as training calls it: in micro-batches, alike on all ranks."""
    head: MarginHead
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    schedule: Schedule
    kept: Kept
    """Gradients of several batches, and the average of the weights."""
    global_batch: int
    num_steps: int
    step: int = 0
    """Finished steps. All randomness of the next step is a function of it."""
    position: int = 0
    """Samples of the stream that are used up."""
    skipped: int = 0
    """Steps that changed nothing since a loss or gradient was not finite."""
    passed_over: PassedOver = field(default_factory=PassedOver)
    """Unreadable records."""
    pending: Pending | None = None
    """The last step, where the host has not yet asked whether its loss was finite."""

    @cached_property
    def running(self) -> list[Tensor]:
        """Running mean and variance of each BatchNorm of the backbone, the buffers themselves."""
        return running_statistics(self.backbone)

    @property
    def asks_late(self) -> bool:
        """Whether the host reads one step later if a loss or gradient is not finite.

        Head and optimizer can then change nothing by themselves; otherwise it waits for the device.
        """
        fused = self.optimizer.param_groups[0]["fused"]
        at_once = self.scaler.is_enabled() or self.config.train.accumulate > 1
        return self.head.defers and bool(fused) and not at_once

    @property
    def counts(self) -> list[int]:
        """Samples of each rank in a step, as `Loader` divides the global batch."""
        size = self.world.size
        return [len(shard_range(self.global_batch, size, rank)) for rank in range(size)]

    def groups(self) -> list[Group]:
        """All groups that a step speaks in, each of which counts its traffic."""
        mesh = self.head.mesh
        return [self.world, mesh.world, mesh.shard, mesh.replicate]

    def rate(self, step: int) -> float:
        """The learning rate of a step, for layers without a factor of their own."""
        return self.config.optim.lr * self.schedule(step)

    def autocast(self) -> torch.autocast:
        """The arithmetic of the backbone's trunk."""
        return trunk_autocast(self.device.type, self.config.train.precision)

    def loader(self) -> Loader:
        """The batches from here on."""
        data, seed = self.config.data, derive_seed(self.config.seed, ORDER)
        loader = Loader(
            self.dataset,
            self.global_batch,
            seed=seed,
            rank=self.world.rank,
            world_size=self.world.size,
            position=self.position,
            num_threads=data.threads or decoding_threads(self.device.type),
            prefetch=data.prefetch,
            pin_memory=self.device.type == "cuda",
            on_error=data.on_error,
            order=make_order(data, self.dataset, seed),
        )
        self.passed_over.own = loader.skipped
        return loader


def build(config: Config, device: torch.device) -> TrainState:
    """Put a run together on this rank. A collective where there are several.

    Raises:
        FileNotFoundError, ValueError: What the config names is missing or does not fit.
    """
    world, config = world_group(), settled(config, device.type)
    dataset, found = open_training_set(config.data, world)
    dtype = torch.promote_types(PRECISIONS[config.train.precision], torch.float32)
    backbone = _place_backbone(config, device, world).to(dtype)
    round_convolutions(config.train.precision == "tf32")
    # Sizes of batch and images stay, so it pays to try which algorithms are fastest.
    torch.backends.cudnn.benchmark = device.type == "cuda"
    head = make_head(config, dataset.num_classes, backbone.embedding_dim, device)
    global_batch = config.train.global_batch_size or config.train.batch_size * world.size
    check_batch(global_batch, config.train, world.size)
    num_steps = config.train.steps or max(
        1, round(config.train.epochs * len(dataset) / global_batch)
    )
    augment = augmentation(**asdict(config.data.augment))
    share = len(shard_range(global_batch, world.size, world.rank))
    layout = memory_layout(config.train)
    capture_(backbone, config, device, world.size, augment, (share, layout))
    return TrainState(
        config=config,
        device=device,
        world=world,
        dataset=dataset,
        found=found,
        pairs=open_sets(config.evaluation.sets, config.data.path),
        augment=augment,
        backbone=backbone,
        model=replicate(MicroBatches(backbone, config.train.micro_batch), world),
        head=head,
        optimizer=make_optimizer(backbone, config.optim),
        scaler=torch.amp.GradScaler(device.type, enabled=config.train.precision == "fp16"),
        schedule=make_schedule(config.optim.schedule, num_steps),
        kept=Kept(backbone, config.optim.ema),
        global_batch=global_batch,
        num_steps=num_steps,
    )


def make_backbone(
    config: Config, device: torch.device, random: torch.Generator | None = None
) -> backbones.Backbone:
    """The network of a run on `device`, still on the CPU, with weights drawn from `random`."""
    chosen = config.backbone
    backbone = backbones.build(
        chosen.name,
        chosen.embedding_dim,
        chosen.neck,
        chosen.family,
        chosen.dropout,
        chosen.image_size,
        generator=random,
    )
    accelerate_(backbone, device, PRECISIONS[config.train.precision])
    asked = config.train.recompute
    if backbone.recomputes if asked is None else asked:
        recompute_(backbone)
    return backbone


def memory_layout(train: TrainConfig) -> torch.memory_format:
    """How images and the weights of convolutions lie in memory."""
    return torch.channels_last if train.channels_last else torch.contiguous_format


def _place_backbone(config: Config, device: torch.device, world: Group) -> backbones.Backbone:
    """The network with the weights that a run begins with, where and how it will be trained."""
    chosen = config.backbone
    if chosen.weights is not None and chosen.family is None:
        chosen = replace(chosen, family=family_of(chosen.weights, chosen.name))
    config = replace(config, backbone=chosen)
    backbone = make_backbone(config, device, generator("cpu", config.seed, BACKBONE))
    if chosen.weights is not None:
        load_weights_(backbone, chosen.weights)
    freeze_(backbone, parse(config.optim.groups))
    check_graphs(backbone, config.optim, config.train)
    if config.train.sync_batchnorm:
        synchronise_norms_(backbone, world)
    if config.train.compile:  # in place: the names of its weights stay
        graphs = config.train.graphs and device.type == "cuda"
        backbone.compile(mode="reduce-overhead" if graphs else None)
    layout = memory_layout(config.train)
    return backbone.to(device).to(memory_format=layout)  # type: ignore[call-overload,no-any-return]


def make_head(
    config: Config, num_classes: int, embedding_dim: int, device: torch.device
) -> MarginHead:
    """The head of a run. A collective where there are several ranks."""
    optim = config.optim
    return MarginHead(
        num_classes,
        embedding_dim,
        margin_of(config),
        config.head.scale,
        config.head.sample_rate,
        config.head.shards,
        rows_dtype(config),
        momentum=centres_momentum(config),
        weight_decay=(
            optim.weight_decay if optim.head_weight_decay is None else optim.head_weight_decay
        ),
        seed=config.seed,
        device=device,
        products=config.head.products,
        overlap=config.head.overlap,
        logits_budget=None if config.head.logits_mib is None else config.head.logits_mib << 20,
        subcentres=config.head.subcentres,
        interclass_filter=config.head.interclass_filter,
        optimizer=optim.head_name,
    )


def margin_of(config: Config) -> TargetMargin:
    """The margin by its name. Options with a default go to the margins that take them alone."""
    chosen = asdict(config.head.margin)
    name, taken = chosen.pop("name"), margin_values(config.head.margin.name)
    for option in ("m1", "m2", "m3", "gradient", "warmup"):
        if option not in taken:
            del chosen[option]
    return make_margin(name, **{key: value for key, value in chosen.items() if value is not None})


def centres_momentum(config: Config) -> float:
    """Momentum of the class centres' SGD."""
    own = config.head.momentum
    return config.optim.momentum if own is None else own


def rows_dtype(config: Config) -> torch.dtype:
    """How the class centres are stored."""
    chosen: torch.dtype = getattr(torch, config.head.rows)
    if config.train.precision != "float64":
        return chosen
    if chosen != torch.float32:
        raise ValueError(
            f"head.rows is {config.head.rows}, but train.precision float64 is exact in all; leave "
            "head.rows out"
        )
    return torch.float64
