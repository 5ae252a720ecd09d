"""Options of the model: backbone, margin, head."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from facescale.config.intervals import (
    BelowOne,
    Count,
    Finite,
    Interval,
    NotNegative,
    Positive,
    Rate,
    Section,
    Whole,
)


@dataclass(frozen=True, kw_only=True)
class BackboneConfig(Section, prefix="backbone."):
    """The network from pixels to embeddings."""

    name: str = "r50"
    """r18, r34, r50, r100, r152, r200, ir_se_50, y1, y2, mbf, mbf_large, vit_t, ..., r18_half."""
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
    """combined (of m1, m2, m3), adaface, magface, curricularface, arcface, cosface, or your own."""
    m1: Finite = 1.0
    """Of combined: factor on the angle."""
    m2: Finite = 0.5
    """Of combined: added to the angle, radians."""
    m3: Finite = 0.0
    """Of combined: subtracted from the cosine."""
    gradient: Literal["exact", "straight-through"] = "exact"
    """exact: of the function; straight-through: as if the margin were a constant."""
    m: Finite | None = None
    """Of adaface, cosface (0.4 when not given), arcface, curricularface (0.5): the margin."""
    h: Finite | None = None
    """Of adaface: effect of the norm; 0.333 when not given."""
    t_alpha: Finite | None = None
    """Of adaface and curricularface: weight of a batch in what they keep; 0.01 when not given."""
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
    subcentres: Annotated[int, Interval(1, 255)] = 1
    """Centres of each identity, whose logit is that of the nearest one: against noisy labels."""
    interclass_filter: Rate | None = None
    """Cosines to other identities above it count as 0: against noisy labels; 0.4 for example."""
    lr_factor: NotNegative = 1.0
    """Learning rate of the centres as a multiple of the backbone's."""
    rows: Literal["float32", "bfloat16", "int8"] = "float32"
    """How centres are stored: bfloat16 takes half of the memory, int8 a quarter."""
    momentum: BelowOne | None = None
    """Momentum of the centres; optim.momentum when not given. At 0 they take half of the memory."""
    products: Literal["tf32x3", "tf32", "bf16"] = "tf32x3"
    """How a CUDA device rounds the factors of the head's products; tf32x3 is exact as float32."""
    logits_mib: Count | None = None
    """MiB of logits kept for the backward pass. Not given: 256, on CUDA a sixteenth of the GPU."""
    overlap: bool = True
    """On CUDA, move the centres while the backbone's backward pass runs. It changes no number."""
