"""One run, described: what to train on, with what, for how long. Frozen, validated, saved as YAML.

Every field can be set in a preset and overridden on the command line: `--head.sample_rate 0.1`.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

PRESETS = Path(__file__).parent / "presets"


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """What happens to a training image on the device; the field's standard is the flip alone."""

    flip: float = 0.5
    """Chance of a mirror image."""
    shift: int = 0
    """Pixels, each way on both axes."""
    scale: float = 0.0
    """0.1 enlarges or shrinks by up to a tenth."""
    rotate: float = 0.0
    """Degrees, each way."""
    brightness: float = 0.0
    """0.2 multiplies pixels by 0.8 to 1.2."""
    contrast: float = 0.0
    """0.2 multiplies the distance from the mean by 0.8 to 1.2."""
    saturation: float = 0.0
    """0.2 multiplies the distance from grey by 0.8 to 1.2."""
    grey: float = 0.0
    """Chance that all colour goes."""
    blur: float = 0.0
    """Largest standard deviation of a Gaussian, pixels."""
    erase: int = 0
    """Largest side of a square that becomes mid-grey, pixels."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the training images come from."""

    path: str | None = None
    """RecordIO folder (train.rec), folder of one folder a person, "synthetic" or "att"."""
    num_classes: int | None = None
    """Identities. Needed for synthetic data; of other data it is checked when given."""
    num_images: int | None = None
    """Images, likewise."""
    threads: int = 2
    """Threads of a rank that decode."""
    prefetch: int = 4
    """Batches decoded ahead."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)

    def __post_init__(self) -> None:
        _require(self.threads >= 1, f"data.threads must be at least 1, got {self.threads}")
        _require(self.prefetch >= 1, f"data.prefetch must be at least 1, got {self.prefetch}")


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """The network from pixels to embedding."""

    name: str = "r50"
    """r18, r34, r50, r100, r200, y1, y2, mbf, mbf_large, or r18_half for laptops."""
    embedding_dim: int | None = None
    """Size of the embedding; the network's own (512, y1 128, y2 256) when not given."""
    neck: Literal["E", "FC", "GDC"] | None = None
    """What turns the last map into the embedding; the network's own when not given."""
    family: Literal["mxnet", "arcface_torch"] | None = None
    """Whose constants: BatchNorm eps, pixel scale, start values."""
    dropout: float | None = None
    """Dropout of neck E; 0.4 when not given."""
    image_size: int = 112
    """112; at 56 or 28 images are averaged down first: a quarter or a sixteenth of the work."""
    weights: str | None = None
    """Start from this model.safetensors or arcface_torch model.pt."""


@dataclass(frozen=True, kw_only=True)
class MarginConfig:
    """cos(m1 * theta + m2) - m3: ArcFace is m2 = 0.5, CosFace m3 = 0.4."""

    m1: float = 1.0
    m2: float = 0.5
    m3: float = 0.0
    gradient: Literal["exact", "straight-through"] = "exact"
    warmup: int = 0
    """Steps over which the margin grows from none to all of it."""


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """How the class centres are placed and trained."""

    margin: MarginConfig = field(default_factory=MarginConfig)
    scale: float = 64.0
    """Logits are scale * cosine."""
    shards: int | None = None
    """Parts of the class centres: 1 is data parallel, one a rank (not given) model parallel."""
    sample_rate: float = 1.0
    """Fraction of each shard in a step's softmax, in (0, 1]; below 1 is Partial FC."""
    lr_factor: float = 1.0
    """Learning rate of the centres as a multiple of the backbone's."""
    rows: Literal["float32", "bfloat16", "int8"] = "float32"
    """How centres are stored: bfloat16 takes half of the memory, int8 a quarter."""
    momentum: float | None = None
    """Of the centres; optim.momentum when not given. At 0 none is stored: half of the memory."""


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """The learning rate as a function of the step."""

    kind: Literal["step", "linear", "cosine"] = "linear"
    """By boundaries, or down to 0 along a line (arcface_torch) or a half cosine."""
    boundaries: list[int] = field(default_factory=list)
    """Steps at which a step schedule changes."""
    scales: list[float] = field(default_factory=list)
    """Factor on the learning rate after each boundary."""
    warmup: int = 0
    """Steps over which the rate climbs linearly from 0."""

    def __post_init__(self) -> None:
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
class OptimConfig:
    """How the backbone learns; lr, momentum and weight decay hold for the centres' SGD too."""

    name: Literal["sgd", "adamw"] = "sgd"
    lr: float = 0.1
    """Peak learning rate, absolute: it is not scaled by the batch."""
    momentum: float = 0.9
    """Of SGD; AdamW has its own (0.9, 0.999)."""
    weight_decay: float = 5e-4
    head_weight_decay: float | None = None
    """Of the class centres; weight_decay when not given."""
    decay: Literal["all", "weights"] = "all"
    """Which backbone parameters decay: all (the report, arcface_torch), or no BN, PReLU, bias."""
    clip_norm: float | None = None
    """Largest norm of the backbone's gradient; arcface_torch has 5."""
    fused: bool = False
    """One kernel of torch for all parameters' updates; equal but for rounding."""
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)

    def __post_init__(self) -> None:
        _require(self.lr > 0, f"optim.lr must be greater than 0, got {self.lr}")
        _require(0 <= self.momentum < 1, f"optim.momentum must be in [0, 1), got {self.momentum}")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How much is trained, in what portions, with what arithmetic."""

    batch_size: int = 128
    """Samples of one rank in a step."""
    global_batch_size: int | None = None
    """Samples of all ranks together; when given, it replaces batch_size x ranks."""
    micro_batch: int | None = None
    """Samples in the backbone at a time: memory for time; BatchNorm sees these."""
    epochs: float = 20.0
    steps: int | None = None
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

    def __post_init__(self) -> None:
        for name in ("batch_size", "global_batch_size", "micro_batch", "steps"):
            value = getattr(self, name)
            _require(value is None or value >= 1, f"train.{name} must be at least 1, got {value}")
        _require(self.epochs > 0, f"train.epochs must be greater than 0, got {self.epochs}")


@dataclass(frozen=True, kw_only=True)
class StartConfig:
    """What a new run takes over from an earlier one: its people may be others."""

    checkpoint: str | None = None
    """Begin with backbone, optimizer and class centres of this checkpoint, or run's last one."""
    classes: str | None = None
    """File with a line for each class of the data: the label it had there, or `new`."""
    names: list[str] = field(default_factory=list)
    """In its place two files of names, a line a class: of the checkpoint, of the data."""

    def __post_init__(self) -> None:
        _require(
            len(self.names) in (0, 2),
            f"start.names takes two files, the old names and the new ones, got {self.names}",
        )
        _require(
            self.checkpoint is not None or not (self.classes or self.names),
            "start.classes and start.names need start.checkpoint",
        )


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """Verification while training and at its end."""

    sets: list[str] = field(default_factory=list)
    """Verification sets (.bin files), or "att"."""
    every: int | None = None
    """Steps between verifications; only at the end when not given."""
    batch_size: int = 64


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When to save all that a run needs to go on."""

    every: int = 2000
    """Steps between checkpoints."""
    keep: int = 3
    """How many of the last ones stay."""

    def __post_init__(self) -> None:
        _require(self.every >= 1, f"checkpoint.every must be at least 1, got {self.every}")
        _require(self.keep >= 1, f"checkpoint.keep must be at least 1, got {self.keep}")


@dataclass(frozen=True, kw_only=True)
class Config:
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
    timeout_s: float = 600.0
    """Seconds that a rank waits for the others before it takes them for lost."""
    seed: int = 0
    log_every: int = 10
    """Steps between log lines."""

    def __post_init__(self) -> None:
        _require(self.seed >= 0, f"seed must be 0 or more, got {self.seed}")
        _require(self.log_every >= 1, f"log_every must be at least 1, got {self.log_every}")

    def to_yaml(self) -> str:
        """All fields as YAML; what `facescale train FILE` reads back."""
        values: dict[str, Any] = asdict(self)
        return yaml.safe_dump(values, sort_keys=False)


def preset_path(name: str) -> Path:
    """The YAML of a preset or of an earlier run.

    Raises:
        FileNotFoundError: `name` is neither a preset nor a file.
    """
    known = PRESETS / f"{name}.yaml"
    path = known if known.is_file() else Path(name)
    if not path.is_file():
        names = ", ".join(sorted(p.stem for p in PRESETS.glob("*.yaml")))
        raise FileNotFoundError(f"{name} is neither a preset ({names}) nor a YAML file")
    return path
