"""Where MXNet's networks and arcface_torch's differ although they share an architecture.

Weights belong to their family: the other one would load them without complaint and answer
slightly differently. So a backbone always names its family, and these are all the differences:

| | `MXNET` | `ARCFACE_TORCH` |
|---|---|---|
| pixels are divided by | 128 | 127.5 |
| BatchNorm eps, IResNet | 2e-5 | 1e-5 |
| BatchNorm eps, MobileFaceNet and GDC's depthwise layer | 1e-3 | 1e-5 |
| BatchNorm eps, rest of the neck | 2e-5 | 1e-5 |
| dropout of neck E | 0.4 | 0 |
| neck GDC: bias of the linear layer | yes | no |
| neck GDC: gamma of the last BatchNorm | fixed at 1 | trained |
| IResNet: start of convolutions | N(0, 0.1) | N(0, 0.1) |
| IResNet: start of the linear layer | N(0, 0.1) | uniform by fan-in |
| MobileFaceNet: start of all weights | N(0, sqrt(2 / fan-out)) | N(0, sqrt(2 / fan-out)) |

Common to both: running statistics move by 0.1 a step (MXNet writes that as momentum 0.9), PReLU
slopes start at 0.25, biases at 0, and necks E and FC fix the last gamma at 1. OneFlow's networks
are MXNet's, except that its MobileFaceNet starts with N(0, 0.1).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Generator, Tensor, nn

Architecture = Literal["iresnet", "mobilefacenet"]

Initialiser = Callable[[Tensor, Generator | None], object]
"""Fills a weight in place from a generator (None: torch's default one)."""


def normal(weight: Tensor, generator: Generator | None) -> None:
    """N(0, 0.1): MXNet's `Normal(0.1)`, with which its Partial FC starts a backbone."""
    nn.init.normal_(weight, std=0.1, generator=generator)


def fan_out_normal(weight: Tensor, generator: Generator | None) -> None:
    """N(0, sqrt(2 / fan-out)), He et al. 2015: also MXNet's `Xavier("gaussian", "out", 2)`."""
    nn.init.kaiming_normal_(weight, mode="fan_out", nonlinearity="relu", generator=generator)


def fan_in_uniform(weight: Tensor, generator: Generator | None) -> None:
    """U(-1/sqrt(fan-in), 1/sqrt(fan-in)): what `torch.nn.Linear` starts with."""
    nn.init.kaiming_uniform_(weight, a=5**0.5, generator=generator)


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What a family prescribes for one architecture."""

    eps: float
    """Added to the variance by every BatchNorm of the trunk."""
    conv: Initialiser
    linear: Initialiser


@dataclass(frozen=True, kw_only=True)
class Family:
    """The numbers of one code base that its weights silently depend on; see the module's table."""

    name: str
    pixel_scale: float
    """Pixels 0..255 become (pixel - 127.5) / pixel_scale."""
    iresnet: Rules
    mobilefacenet: Rules
    neck_eps: float
    depthwise_eps: float
    """BatchNorm eps behind the 7x7 depthwise convolution of neck GDC."""
    dropout: float
    """Probability to drop an activation in neck E, unless `build` is told otherwise."""
    gdc_bias: bool
    gdc_trains_gamma: bool

    def rules(self, architecture: Architecture) -> Rules:
        """The rules for an architecture's trunk and for the start of its weights."""
        return self.iresnet if architecture == "iresnet" else self.mobilefacenet


MXNET = Family(
    name="mxnet",
    pixel_scale=128.0,
    iresnet=Rules(eps=2e-5, conv=normal, linear=normal),
    # 1e-3 is MXNet's default, which its MobileFaceNet leaves as it is
    mobilefacenet=Rules(eps=1e-3, conv=fan_out_normal, linear=fan_out_normal),
    neck_eps=2e-5,
    depthwise_eps=1e-3,
    dropout=0.4,
    gdc_bias=True,
    gdc_trains_gamma=False,
)

ARCFACE_TORCH = Family(
    name="arcface_torch",
    pixel_scale=127.5,
    iresnet=Rules(eps=1e-5, conv=normal, linear=fan_in_uniform),
    mobilefacenet=Rules(eps=1e-5, conv=fan_out_normal, linear=fan_out_normal),
    neck_eps=1e-5,
    depthwise_eps=1e-5,
    dropout=0.0,
    gdc_bias=False,
    gdc_trains_gamma=True,
)

FAMILIES = {family.name: family for family in (MXNET, ARCFACE_TORCH)}


def initialise_(network: nn.Module, rules: Rules, generator: Generator | None = None) -> None:
    """Start the convolutions and linear layers of `network` by `rules`, with biases 0.

    BatchNorm and PReLU keep torch's start (gamma 1, beta 0, slope 0.25), which both families share.
    Layers without memory (device `meta`) are passed over: torch takes a millisecond for each.
    """
    for layer in network.modules():
        if any(p.is_meta for p in layer.parameters(recurse=False)):
            continue
        if isinstance(layer, nn.Conv2d):
            rules.conv(layer.weight, generator)
        elif isinstance(layer, nn.Linear):
            rules.linear(layer.weight, generator)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)  # a BatchNorm follows: any constant would cancel
