"""One run, described: what to train on, with what, for how long. Frozen, validated, saved as YAML.

Every field can be set in a preset and overridden on the command line: `--head.sample_rate 0.1`.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from facescale.intervals import (
    BelowOne,
    Chance,
    Count,
    Finite,
    NotNegative,
    Positive,
    Rate,
    Section,
    Whole,
)

PRESETS = Path(__file__).parent / "presets"


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


@dataclass(frozen=True, kw_only=True)
class AugmentConfig(Section, prefix="data.augment."):
    """What happens to a training image on the device; the field's standard is the flip alone."""

    flip: Chance = 0.5
    """Chance of a mirror image."""
    shift: Whole = 0
    """Pixels, each way on both axes."""
    scale: BelowOne = 0.0
    """0.1 enlarges or shrinks by up to a tenth."""
    rotate: NotNegative = 0.0
    """Degrees, each way."""
    brightness: NotNegative = 0.0
    """0.2 multiplies pixels by 0.8 to 1.2."""
    contrast: NotNegative = 0.0
    """0.2 multiplies the distance from the mean by 0.8 to 1.2."""
    saturation: NotNegative = 0.0
    """0.2 multiplies the distance from grey by 0.8 to 1.2."""
    grey: Chance = 0.0
    """Chance that all colour goes."""
    blur: NotNegative = 0.0
    """Largest standard deviation of a Gaussian, pixels."""
    erase: Whole = 0
    """Largest side of a square that becomes mid-grey, pixels."""


@dataclass(frozen=True, kw_only=True)
class DataConfig(Section, prefix="data."):
    """Where the training images come from."""

    path: str | None = None
    """RecordIO folder (train.rec), folder of one folder a person, "synthetic" or "att"."""
    num_classes: Count | None = None
    """Identities. Needed for synthetic data; of other data it is checked when given."""
    num_images: Count | None = None
    """Images, likewise."""
    threads: Count = 2
    """Threads of a rank that decode."""
    prefetch: Count = 4
    """Batches decoded ahead."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)


@dataclass(frozen=True, kw_only=True)
class BackboneConfig(Section, prefix="backbone."):
    """The network from pixels to embedding."""

    name: str = "r50"
    """r18, r34, r50, r100, r200, y1, y2, mbf, mbf_large, or r18_half for laptops."""
    embedding_dim: Count | None = None
    """Size of the embedding; the network's own (512, y1 128, y2 256) when not given."""
    neck: Literal["E", "FC", "GDC"] | None = None
    """What turns the last map into the embedding; the network's own when not given."""
    family: Literal["mxnet", "arcface_torch"] | None = None
    """Whose constants: BatchNorm eps, pixel scale, start values."""
    dropout: BelowOne | None = None
    """Dropout of neck E; 0.4 when not given."""
    image_size: int = 112
    """112; at 56 or 28 images are averaged down first: a quarter or a sixteenth of the work."""
    weights: str | None = None
    """Start from this model.safetensors or arcface_torch model.pt."""


@dataclass(frozen=True, kw_only=True)
class MarginConfig(Section, prefix="head.margin."):
    """cos(m1 * theta + m2) - m3: ArcFace is m2 = 0.5, CosFace m3 = 0.4."""

    m1: Finite = 1.0
    """Factor on the angle."""
    m2: Finite = 0.5
    """Added to the angle, radians."""
    m3: Finite = 0.0
    """Subtracted from the cosine."""
    gradient: Literal["exact", "straight-through"] = "exact"
    """exact: of the function; straight-through: as if the margin were a constant."""
    warmup: Whole = 0
    """Steps over which the margin grows from none to all of it."""


@dataclass(frozen=True, kw_only=True)
class HeadConfig(Section, prefix="head."):
    """How the class centres are placed and trained."""

    margin: MarginConfig = field(default_factory=MarginConfig)
    scale: Positive = 64.0
    """Logits are scale * cosine."""
    shards: Count | None = None
    """Parts of the class centres: 1 is data parallel, one a rank (not given) model parallel."""
    sample_rate: Rate = 1.0
    """Fraction of each shard in a step's softmax, in (0, 1]; below 1 is Partial FC."""
    lr_factor: NotNegative = 1.0
    """Learning rate of the centres as a multiple of the backbone's."""
    rows: Literal["float32", "bfloat16", "int8"] = "float32"
    """How centres are stored: bfloat16 takes half of the memory, int8 a quarter."""
    momentum: BelowOne | None = None
    """Of the centres; optim.momentum when not given. At 0 none is stored: half of the memory."""


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig(Section, prefix="optim.schedule."):
    """The learning rate as a function of the step."""

    kind: Literal["step", "linear", "cosine"] = "linear"
    """By boundaries, or down to 0 along a line (arcface_torch) or a half cosine."""
    boundaries: list[Count] = field(default_factory=list)
    """Steps at which a step schedule changes."""
    scales: list[NotNegative] = field(default_factory=list)
    """Factor on the learning rate after each boundary."""
    warmup: Whole = 0
    """Steps over which the rate climbs linearly from 0."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(
            len(self.boundaries) == len(self.scales),
            f"optim.schedule has {len(self.boundaries)} boundaries but {len(self.scales)} scales; "
            "give one scale for each boundary",
        )
        _require(
            self.boundaries == sorted(set(self.boundaries)),
            f"optim.schedule.boundaries must grow, got {self.boundaries}",
        )


@dataclass(frozen=True, kw_only=True)
class OptimConfig(Section, prefix="optim."):
    """How the backbone learns; lr, momentum and weight decay hold for the centres' SGD too."""

    name: Literal["sgd", "adamw"] = "sgd"
    """AdamW is for the backbone alone; the class centres keep SGD."""
    lr: Positive = 0.1
    """Peak learning rate, absolute: it is not scaled by the batch."""
    momentum: BelowOne = 0.9
    """Of SGD; AdamW has its own (0.9, 0.999)."""
    weight_decay: NotNegative = 5e-4
    """Factor on the squared weights, of the centres too unless head_weight_decay is given."""
    head_weight_decay: NotNegative | None = None
    """Of the class centres; weight_decay when not given."""
    decay: Literal["all", "weights"] = "all"
    """Which backbone parameters decay: all (the report, arcface_torch), or no BN, PReLU, bias."""
    clip_norm: Positive | None = None
    """Largest norm of the backbone's gradient; arcface_torch has 5."""
    fused: bool = False
    """One kernel of torch for all parameters' updates; equal but for rounding."""
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Section, prefix="train."):
    """How much is trained, in what portions, with what arithmetic."""

    batch_size: Count = 128
    """Samples of one rank in a step."""
    global_batch_size: Count | None = None
    """Samples of all ranks together; when given, it replaces batch_size x ranks."""
    micro_batch: Count | None = None
    """Samples in the backbone at a time: memory for time; BatchNorm sees these."""
    epochs: Positive = 20.0
    """Rounds through the images."""
    steps: Count | None = None
    """Steps in all; when given, it replaces epochs."""
    precision: Literal["float32", "tf32", "float64", "bf16", "fp16"] = "float32"
    """Of the backbone's trunk; neck and head stay in float32. float64 is all of it, for proofs.

    tf32 is float32 whose convolutions round to 10 bits where CUDA has cores for that.
    """
    sync_batchnorm: bool = False
    """BatchNorm over the global batch: what is learnt no longer depends on the ranks."""
    nonfinite: Literal["stop", "skip"] = "stop"
    """What a loss or gradient that is not finite does: end the run, or skip the step, counted."""
    channels_last: bool = True
    """Memory layout of images and weights."""
    compile: bool = False
    """Let torch.compile make kernels of the backbone; costs minutes at the start."""


@dataclass(frozen=True, kw_only=True)
class StartConfig(Section, prefix="start."):
    """What a new run takes over from an earlier one: its people may be others."""

    checkpoint: str | None = None
    """Begin with backbone, optimizer and class centres of this checkpoint, or run's last one."""
    classes: str | None = None
    """File with a line for each class of the data: the label it had there, or `new`."""
    names: list[str] = field(default_factory=list)
    """In its place two files of names, a line a class: of the checkpoint, of the data."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(
            len(self.names) in (0, 2),
            f"start.names takes two files, the old names and the new ones, got {self.names}",
        )
        _require(
            self.checkpoint is not None or not (self.classes or self.names),
            "start.classes and start.names need start.checkpoint",
        )


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig(Section, prefix="evaluation."):
    """Verification while training and at its end."""

    sets: list[str] = field(default_factory=list)
    """Verification sets (.bin files), or "att"."""
    every: Count | None = None
    """Steps between verifications; only at the end when not given."""
    batch_size: Count = 64
    """Images of a rank in the backbone at a time."""


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig(Section, prefix="checkpoint."):
    """When to save all that a run needs to go on."""

    every: Count = 2000
    """Steps between checkpoints."""
    keep: Count = 3
    """How many of the last ones stay."""


@dataclass(frozen=True, kw_only=True)
class Config(Section):
    """One run."""

    data: DataConfig = field(default_factory=DataConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    start: StartConfig = field(default_factory=StartConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto is CUDA where there is one."""
    timeout_s: Positive = 600.0
    """Seconds that a rank waits for the others before it takes them for lost."""
    seed: Whole = 0
    """Of all random numbers."""
    log_every: Count = 10
    """Steps between log lines."""
    trackers: list[str] = field(default_factory=lambda: ["console", "jsonl"])
    """Where figures go: console, jsonl, tensorboard, wandb, or one that you registered."""

    def to_yaml(self) -> str:
        """All fields as YAML; what `facescale train FILE` reads back."""
        values: dict[str, Any] = asdict(self)
        return yaml.safe_dump(values, sort_keys=False)
