"""The options of a run: data, network, head, optimizer, length. Frozen, validated, saved as YAML.

Every field can be set in a preset and overridden on the command line: `--head.sample_rate 0.1`.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import yaml

from facescale.intervals import (
    BelowOne,
    Chance,
    Count,
    Finite,
    Interval,
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
    """Augmentation of training images, on the device; most projects use the flip alone."""

    flip: Chance = 0.5
    """Chance of a mirror image."""
    shift: Annotated[int, Interval(0, 112)] = 0
    """Largest shift along each axis, pixels."""
    scale: BelowOne = 0.0
    """0.1 enlarges or shrinks by up to a tenth."""
    rotate: Annotated[float, Interval(0, 180)] = 0.0
    """Largest rotation, degrees."""
    brightness: NotNegative = 0.0
    """0.2 multiplies pixels by 0.8 to 1.2."""
    contrast: NotNegative = 0.0
    """0.2 multiplies the distance from the mean by 0.8 to 1.2."""
    saturation: NotNegative = 0.0
    """0.2 multiplies the distance from grey by 0.8 to 1.2."""
    grey: Chance = 0.0
    """Chance of a grey image."""
    blur: Annotated[float, Interval(0, 112)] = 0.0
    """Largest standard deviation of a Gaussian, pixels."""
    erase: Annotated[int, Interval(0, 112)] = 0
    """Largest side of a square that becomes mid-grey, pixels."""


@dataclass(frozen=True, kw_only=True)
class DataConfig(Section, prefix="data."):
    """Where the training images come from."""

    path: str | None = None
    """Folder with train.rec, or with one folder of images a person; "synthetic" or "att"."""
    num_classes: Count | None = None
    """Identities: of synthetic data and of the plan; of other data it is checked."""
    num_images: Count | None = None
    """Images, in the same way."""
    threads: Annotated[int, Interval(1, 1024)] = 2
    """Threads of a rank that decode images."""
    prefetch: Annotated[int, Interval(1, 256)] = 4
    """Batches that are decoded in advance."""
    on_error: Literal["stop", "skip"] = "stop"
    """At an unreadable image: save and stop, or take the next one, up to 1 % (at least 100)."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)


@dataclass(frozen=True, kw_only=True)
class BackboneConfig(Section, prefix="backbone."):
    """The network from pixels to embeddings."""

    name: str = "r50"
    """r18, r34, r50, r100, r152, r200, y1, y2, mbf, mbf_large, vit_t, ..., or r18_half (small)."""
    embedding_dim: Count | None = None
    """Size of the embedding; the network's own (512, y1 128, y2 256) when not given."""
    neck: Literal["E", "FC", "GDC"] | None = None
    """The layers from the last feature map to the embedding; the network's own when not given."""
    family: Literal["mxnet", "arcface_torch"] | None = None
    """The code base whose BatchNorm eps, pixel scale and initial values are used."""
    dropout: BelowOne | None = None
    """Dropout of neck E; 0.4 when not given."""
    image_size: int = 112
    """112; at 56 or 28 images are averaged down first: a quarter or a sixteenth of the work."""
    weights: str | None = None
    """Start from this model.safetensors or arcface_torch model.pt."""


@dataclass(frozen=True, kw_only=True)
class MarginConfig(Section, prefix="head.margin."):
    """By default cos(m1 * theta + m2) - m3: ArcFace is m2 = 0.5, CosFace m3 = 0.4."""

    name: str = "combined"
    """combined (of m1, m2, m3), adaface, magface, arcface, cosface, or one that you registered."""
    m1: Finite = 1.0
    """Of combined: factor on the angle."""
    m2: Finite = 0.5
    """Of combined: added to the angle, radians."""
    m3: Finite = 0.0
    """Of combined: subtracted from the cosine."""
    gradient: Literal["exact", "straight-through"] = "exact"
    """exact: of the function; straight-through: as if the margin were a constant."""
    m: Finite | None = None
    """Of adaface (0.4 when not given), arcface (0.5) and cosface (0.4): the margin."""
    h: Finite | None = None
    """Of adaface: effect of the norm; 0.333 when not given."""
    t_alpha: Finite | None = None
    """Of adaface: weight of a batch in the running statistics; 0.01 when not given."""
    l_a: Finite | None = None
    """Of magface: norm of the smallest margin; 10 when not given."""
    u_a: Finite | None = None
    """Of magface: norm of the largest margin; 110 when not given."""
    l_margin: Finite | None = None
    """Of magface: the smallest margin, radians; 0.45 when not given."""
    u_margin: Finite | None = None
    """Of magface: the largest margin, radians; 0.8 when not given."""
    lambda_g: Finite | None = None
    """Of magface: factor of the regulariser; 35 when not given."""
    warmup: Whole = 0
    """Steps over which the margin grows from none to all of it."""


@dataclass(frozen=True, kw_only=True)
class HeadConfig(Section, prefix="head."):
    """Placement and training of the class centres."""

    margin: MarginConfig = field(default_factory=MarginConfig)
    scale: Positive = 64.0
    """Logits are scale * cosine."""
    shards: Count | None = None
    """Parts of the class centres: 1 is data parallel, one a rank (the default) model parallel."""
    sample_rate: Rate = 1.0
    """Fraction of each shard in a step's softmax, in (0, 1]; below 1 is Partial FC."""
    lr_factor: NotNegative = 1.0
    """Learning rate of the centres as a multiple of the backbone's."""
    rows: Literal["float32", "bfloat16", "int8"] = "float32"
    """How centres are stored: bfloat16 takes half of the memory, int8 a quarter."""
    momentum: BelowOne | None = None
    """Momentum of the centres; optim.momentum when not given. At 0 they take half of the memory."""
    products: Literal["tf32x3", "tf32", "bf16"] = "tf32x3"
    """How a CUDA device rounds the factors of the head's products; tf32x3 is exact as float32."""


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig(Section, prefix="optim.schedule."):
    """The learning rate as a function of the step."""

    kind: Literal["step", "linear", "cosine"] = "linear"
    """step: at boundaries; linear (arcface_torch) and cosine: down to 0 at the end."""
    boundaries: list[Count] = field(default_factory=list)
    """Steps at which a step schedule changes."""
    scales: list[NotNegative] = field(default_factory=list)
    """Factor on the learning rate after each boundary."""
    warmup: Whole = 0
    """Steps over which the rate rises linearly from 0."""

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
    """The optimizer of the backbone; the centres' SGD has its lr, momentum and weight decay."""

    name: Literal["sgd", "adamw"] = "sgd"
    """AdamW is for the backbone alone; the class centres keep SGD."""
    lr: Positive = 0.1
    """Peak learning rate, absolute: it is not scaled by the batch."""
    momentum: BelowOne = 0.9
    """Of SGD; AdamW has its own (0.9, 0.999)."""
    weight_decay: NotNegative = 5e-4
    """Of the backbone, and of the centres unless head_weight_decay is given."""
    head_weight_decay: NotNegative | None = None
    """Of the class centres; weight_decay when not given."""
    decay: Literal["all", "weights"] = "all"
    """Which backbone parameters decay: all (the report, arcface_torch), or no BN, PReLU, bias."""
    clip_norm: Positive | None = None
    """Largest norm of the backbone's gradient; arcface_torch has 5."""
    fused: bool | None = None
    """Update all parameters in one kernel; equal except for rounding. Not given: on CUDA only."""
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Section, prefix="train."):
    """Batches, length and precision."""

    batch_size: Count = 128
    """Samples of one rank in a step."""
    global_batch_size: Count | None = None
    """Samples of all ranks together; when given, it replaces batch_size x ranks."""
    micro_batch: Count | None = None
    """Samples in the backbone at a time: less memory, more time. BatchNorm is over these."""
    epochs: Positive = 20.0
    """Passes over the images."""
    steps: Count | None = None
    """Steps in all; when given, it replaces epochs."""
    precision: Literal["float32", "tf32", "float64", "bf16", "fp16", "auto"] = "float32"
    """Of the backbone's trunk; neck and head stay in float32. float64 is all of it, for proofs.

    tf32 is float32 whose convolutions round to 10 bits where CUDA has cores for that. auto is
    bf16 where the hardware multiplies bfloat16, else float32.
    """
    sync_batchnorm: bool = False
    """BatchNorm over the global batch: the result no longer depends on the number of ranks."""
    nonfinite: Literal["stop", "skip"] = "stop"
    """At a loss or gradient that is not finite: stop the run, or skip the step and count it."""
    channels_last: bool = True
    """Memory layout of images and weights."""
    compile: bool = False
    """Compile the backbone with torch.compile; takes minutes at the start."""


@dataclass(frozen=True, kw_only=True)
class StartConfig(Section, prefix="start."):
    """What a new run takes from the checkpoint of another one, with the same people or others."""

    checkpoint: str | None = None
    """Start with the backbone, optimizer and centres of this checkpoint, or of this run's last."""
    classes: str | None = None
    """File with a line for each class of the data: the label it had there, or `new`."""
    names: list[str] = field(default_factory=list)
    """Instead, two files with a name for each class: of the checkpoint, and of the data."""

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
    """Verification sets: .bin files, names of such files beside the data (lfw), or "att"."""
    every: Count | None = None
    """Steps between verifications; only at the end when not given."""
    batch_size: Count = 64
    """Images of a rank in the backbone at a time."""


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig(Section, prefix="checkpoint."):
    """When to save what --resume needs."""

    every: Count = 2000
    """Steps between checkpoints."""
    keep: Count = 3
    """Checkpoints that are kept, the last ones."""


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
    """Seconds that a rank waits for the others before the run fails."""
    seed: Whole = 0
    """Of all random numbers."""
    log_every: Count = 10
    """Steps between log lines."""
    trackers: list[str] = field(default_factory=lambda: ["console", "jsonl"])
    """Where metrics go: console, jsonl, tensorboard, wandb, or one that you registered."""

    def to_yaml(self) -> str:
        """All fields as YAML; what `facescale train FILE` reads back."""
        return str(yaml.safe_dump(asdict(self), sort_keys=False))
