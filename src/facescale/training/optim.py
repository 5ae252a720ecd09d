"""How the backbone learns: which parameters decay, and the rate as a function of the step."""

import bisect
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from facescale.config import Config, OptimConfig, ScheduleConfig
from facescale.training.groups import Factors, factor_of, parse

Schedule = Callable[[int], float]
"""Number of finished steps -> factor on the learning rate of the next one, in [0, 1]."""


def make_schedule(config: ScheduleConfig, num_steps: int, whole: float | None = None) -> Schedule:
    """The factor on the peak rate for each step of a run of `num_steps`.

    step: `scales[i]` once `boundaries[i]` steps are finished (MXNet's MultiFactorScheduler and
    OneFlow's PiecewiseScaling, the report). linear: down to 0 at the end (arcface_torch's
    PolynomialLR of power 1). polynomial: (share of the steps after the warm-up that are left) **
    `power`; 2 is that of arcface_torch's older PolyScheduler. cosine: down to 0 along half a
    cosine. Each climbs linearly over `warmup` steps first.

    `whole` is the number of steps of a run that has had the batch of the steps to come from its
    beginning: not `num_steps` where it was resumed with another batch. What is left is a share of
    `whole`, so the rate does not jump there.
    """
    total = float(num_steps if whole is None else whole)

    def factor(step: int) -> float:
        if step < config.warmup:
            return step / config.warmup
        if config.kind == "step":
            passed = bisect.bisect_right(config.boundaries, step)
            return config.scales[passed - 1] if passed else 1.0
        left = min(1.0, max(0.0, (num_steps - step) / max(1.0, total - config.warmup)))
        if config.kind == "polynomial":
            return float(left**config.power)
        return left if config.kind == "linear" else 0.5 - 0.5 * math.cos(math.pi * left)

    return factor


def unreached(config: Config, num_steps: int) -> list[str]:
    """What the config asks for and a run of `num_steps` does not do, a line each."""
    schedule, margin = config.optim.schedule, config.head.margin
    lines = []
    for name, warmup, what in (
        ("optim.schedule.warmup", schedule.warmup, "optim.lr is not reached"),
        ("head.margin.warmup", margin.warmup, "the whole margin is not reached"),
    ):
        if warmup > num_steps:
            lines.append(f"{name} is {warmup} steps, but the run has {num_steps}: {what}")
    if (batches := config.train.accumulate) > num_steps:
        lines.append(
            f"train.accumulate is {batches} steps, but the run has {num_steps}: the backbone never "
            "changes"
        )
    boundaries = schedule.boundaries if schedule.kind == "step" else []
    if late := [step for step in boundaries if step >= num_steps]:
        lines.append(
            f"optim.schedule.boundaries {', '.join(map(str, late))} lie beyond the last step, "
            f"{num_steps}: the learning rate does not change there"
        )
    return lines


def decay_groups(
    backbone: nn.Module, weight_decay: float, decay: str, factors: Factors = ()
) -> list[dict[str, Any]]:
    """Parameters that learn, split by whether they decay and by the factor on their rate.

    `decay` is "all" (MXNet, OneFlow's report runs, arcface_torch), "all_but_norms" (AdaFace) or
    "weights": convolutions and linear layers only, no BatchNorm, no PReLU slope, no bias (TFace,
    face.evoLVe).
    """
    norms = [layer for layer in backbone.modules() if isinstance(layer, _BatchNorm | nn.LayerNorm)]
    of_norms = {parameter for layer in norms for parameter in layer.parameters()}
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in backbone.named_parameters():
        if parameter.requires_grad:
            decays = {
                "all": True,
                "all_but_norms": parameter not in of_norms,
                "weights": parameter.ndim > 1,
            }[decay]
            groups.setdefault((factor_of(name, factors), decays), []).append(parameter)
    # The whole rate first, which the log shows; then what decays
    order = sorted(groups, key=lambda kind: (kind[0] != 1.0, not kind[1]))
    return [
        {
            "params": groups[factor, decays],
            "weight_decay": weight_decay if decays else 0.0,
            "factor": factor,
        }
        for factor, decays in order
    ]


def make_optimizer(backbone: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """SGD with momentum or AdamW over the backbone's parameters that learn."""
    factors = parse(config.groups)
    groups = decay_groups(backbone, config.weight_decay, config.decay, factors)
    fused = config.fused
    if fused is None:
        fused = any(p.device.type == "cuda" for p in backbone.parameters())
    if config.name == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, fused=fused)
    sgd = torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, fused=fused)
    fill_momenta_(sgd)
    return sgd


def fill_momenta_(optimizer: torch.optim.Optimizer) -> None:
    """Give parameters of a fused SGD that have no momentum yet one of zeros: a first step is equal.

    torch allocates momenta itself only where no parameter has one, which fails after a layer that
    was frozen; and a first step that overflows would leave them uninitialised.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"] if group["fused"] and group.get("momentum") else ():
            if "momentum_buffer" not in optimizer.state[parameter]:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
