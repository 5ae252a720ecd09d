"""How the backbone learns: which parameters decay, and the rate as a function of the step."""

import bisect
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from facescale.config import Config, OptimConfig, ScheduleConfig

Schedule = Callable[[int], float]
"""Number of finished steps -> factor on the learning rate of the next one, in [0, 1]."""


def make_schedule(config: ScheduleConfig, num_steps: int) -> Schedule:
    """The factor on the peak rate for each step of a run of `num_steps`.

    step: `scales[i]` once `boundaries[i]` steps are finished (MXNet's MultiFactorScheduler and
    OneFlow's PiecewiseScaling, the report). linear: down to 0 at the end (arcface_torch's
    PolynomialLR of power 1). cosine: down to 0 along half a cosine. Each climbs linearly over
    `warmup` steps first.
    """

    def factor(step: int) -> float:
        if step < config.warmup:
            return step / config.warmup
        if config.kind == "step":
            passed = bisect.bisect_right(config.boundaries, step)
            return config.scales[passed - 1] if passed else 1.0
        left = max(0.0, (num_steps - step) / max(1, num_steps - config.warmup))
        return left if config.kind == "linear" else 0.5 - 0.5 * math.cos(math.pi * left)

    return factor


def unreached(config: Config, num_steps: int) -> list[str]:
    """What the config plans for steps that a run of `num_steps` does not have, a line each."""
    schedule, margin = config.optim.schedule, config.head.margin
    lines = []
    for name, warmup, what in (
        ("optim.schedule.warmup", schedule.warmup, "optim.lr is not reached"),
        ("head.margin.warmup", margin.warmup, "the whole margin is not reached"),
    ):
        if warmup > num_steps:
            lines.append(f"{name} is {warmup} steps, but the run has {num_steps}: {what}")
    late = [step for step in schedule.boundaries if step >= num_steps]
    if late and schedule.kind == "step":
        lines.append(
            f"optim.schedule.boundaries {', '.join(map(str, late))} lie beyond the last step, "
            f"{num_steps}: the learning rate does not change there"
        )
    return lines


def decay_groups(backbone: nn.Module, weight_decay: float, decay: str) -> list[dict[str, Any]]:
    """Parameters that learn, split by whether they decay.

    `decay` is "all" (MXNet, OneFlow's report runs, arcface_torch) or "weights": convolutions and
    linear layers only, no BatchNorm, no PReLU slope, no bias (TFace, face.evoLVe).
    """
    learning = [p for p in backbone.parameters() if p.requires_grad]
    decays = [p for p in learning if decay == "all" or p.ndim > 1]
    rest = [p for p in learning if decay != "all" and p.ndim <= 1]
    groups = [
        {"params": decays, "weight_decay": weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def make_optimizer(backbone: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """SGD with momentum or AdamW over the backbone's parameters that learn."""
    groups = decay_groups(backbone, config.weight_decay, config.decay)
    fused = config.fused
    if fused is None:
        fused = any(p.device.type == "cuda" for p in backbone.parameters())
    if config.name == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, fused=fused)
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, fused=fused)
