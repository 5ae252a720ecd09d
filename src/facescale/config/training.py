"""Options of the training: optimizer, length, precision, start, checkpoints."""

from dataclasses import dataclass, field
from typing import Literal

from facescale.config.intervals import (
    BelowOne,
    Count,
    NotNegative,
    Positive,
    Section,
    Whole,
    require,
)


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig(Section, prefix="optim.schedule."):
    """The learning rate as a function of the step."""

    kind: Literal["step", "linear", "polynomial", "cosine"] = "linear"
    """step: at boundaries; linear (arcface_torch), polynomial, cosine: down to 0 at the end."""
    power: Positive = 2.0
    """Of polynomial: the rate is (share of the steps that are left) ** power."""
    boundaries: list[Count] = field(default_factory=list)
    """Steps at which a step schedule changes."""
    scales: list[NotNegative] = field(default_factory=list)
    """Factor on the learning rate after each boundary."""
    warmup: Whole = 0
    """Steps over which the rate rises linearly from 0."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            len(self.boundaries) == len(self.scales),
            f"optim.schedule has {len(self.boundaries)} boundaries but {len(self.scales)} scales; "
            "give one scale for each boundary",
        )
        require(
            self.boundaries == sorted(set(self.boundaries)),
            f"optim.schedule.boundaries must grow, got {self.boundaries}",
        )


@dataclass(frozen=True, kw_only=True)
class OptimConfig(Section, prefix="optim."):
    """The optimizers of the backbone and of the class centres."""

    name: Literal["sgd", "adamw"] = "sgd"
    """Of the backbone."""
    head_name: Literal["sgd", "adamw"] = "sgd"
    """Of the class centres, row by row; see docs/head.md for what AdamW means there."""
    lr: Positive = 0.1
    """Peak learning rate, absolute: it is not scaled by the batch."""
    momentum: BelowOne = 0.9
    """Of SGD; AdamW has its own (0.9, 0.999)."""
    weight_decay: NotNegative = 5e-4
    """Of the backbone, and of the centres unless head_weight_decay is given."""
    head_weight_decay: NotNegative | None = None
    """Of the class centres; weight_decay when not given."""
    decay: Literal["all", "all_but_norms", "weights"] = "all"
    """Which backbone parameters decay: all (the report, arcface_torch), all but those of BatchNorm
    and LayerNorm (AdaFace), or weights alone: no BatchNorm, PReLU, bias."""
    clip_norm: Positive | None = None
    """Largest norm of the backbone's gradient; arcface_torch has 5."""
    fused: bool | None = None
    """Update all parameters in one kernel; equal except for rounding. Not given: on CUDA only."""
    groups: list[str] = field(default_factory=list)
    """Rates of layers, as PATTERN=FACTOR: 'layer1.*=0' freezes, 'fc.*=0.1' slows; first match."""
    frozen_statistics: bool = True
    """Frozen BatchNorms keep their running statistics and normalise with them."""
    ema: BelowOne | None = None
    """Decay of a moving average of the weights, which is verified and saved; 0.999 for example."""
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
    recompute: bool | None = None
    """Keep the inputs of the backbone's blocks and compute what is inside them again in the
    backward pass: much less memory, about a third more time. Not given: large ViTs only."""
    accumulate: Count = 1
    """Batches whose gradients the backbone sums up for one update; each counts as a step."""
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
    graphs: bool | None = None
    """Replay the backbone's passes as CUDA graphs: the host launches two graphs, not hundreds of
    kernels. When not given: on a GPU with one rank, for the convolutional networks."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            not (self.compile and self.recompute),
            "train.compile decides by itself what to compute again; leave out train.recompute",
        )


@dataclass(frozen=True, kw_only=True)
class StartConfig(Section, prefix="start."):
    """What a new run takes from the checkpoint of another one, with the same people or others."""

    checkpoint: str | None = None
    """Start with backbone, optimizer and centres of this checkpoint, or of this run's last; or
    continue arcface_torch's checkpoint_gpu_*.pt in this folder."""
    classes: str | None = None
    """File with a line for each class of the data: the label it had there, or `new`."""
    names: list[str] = field(default_factory=list)
    """Instead, two files with a name for each class: of the checkpoint, and of the data."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.classes is None or not self.names,
            "start.classes and start.names say the same in two ways; give one of them",
        )
        require(
            len(self.names) in (0, 2),
            f"start.names takes two files, the old names and the new ones, got {self.names}",
        )
        require(
            self.checkpoint is not None or not (self.classes or self.names),
            "start.classes and start.names need start.checkpoint",
        )


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig(Section, prefix="checkpoint."):
    """When to save what --resume needs."""

    every: Count = 2000
    """Steps between checkpoints."""
    keep: Count = 3
    """Checkpoints that are kept, the last ones."""
    model_pt: bool = False
    """At the end, write a model.pt for arcface_torch's tools beside model.safetensors."""
    best: str | None = None
    """Keep the checkpoint of the highest accuracy on this one of evaluation.sets too."""
