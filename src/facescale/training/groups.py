"""Layer-wise learning rates and frozen layers: patterns of parameter names and their factors."""

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from facescale.config import OptimConfig, TrainConfig

Factors = Sequence[tuple[str, float]]
"""Patterns, as a shell has them, and the factor on the rate; the first that matches counts."""


def parse(groups: Sequence[str]) -> Factors:
    """The patterns and factors of `optim.groups`; ValueError for one that is not PATTERN=FACTOR."""
    pairs = []
    for text in groups:
        pattern, equals, factor = text.rpartition("=")
        try:
            number = float(factor)
        except ValueError:
            number = -1.0
        if not (equals and pattern and 0.0 <= number < float("inf")):
            raise ValueError(
                f"optim.groups has {text!r}; write PATTERN=FACTOR with a factor of 0 or more, as "
                "'layer1.*=0.1'"
            )
        pairs.append((pattern, number))
    return pairs


def factor_of(name: str, factors: Factors) -> float:
    """The factor on the rate of the parameter `name`; 1 where no pattern matches."""
    return next((factor for pattern, factor in factors if fnmatchcase(name, pattern)), 1.0)


def freeze_(backbone: nn.Module, factors: Factors) -> None:
    """Let the parameters of factor 0 get no gradient.

    Raises:
        ValueError: A pattern matches no parameter, or nothing is left that learns.
    """
    names = [name for name, _ in backbone.named_parameters()]
    for pattern, _ in factors:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(
                f"optim.groups: {pattern!r} matches no parameter; they are called {names[0]}, ..., "
                f"{names[-1]}"
            )
    for name, parameter in backbone.named_parameters():
        if factor_of(name, factors) == 0.0:
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in backbone.parameters()):
        raise ValueError("optim.groups freezes all of the backbone; leave a part of it to learn")


def check_graphs(backbone: nn.Module, optim: OptimConfig, train: TrainConfig) -> None:
    """ValueError where CUDA graphs, captured in training mode, meet frozen statistics."""
    frozen = optim.frozen_statistics and optim.groups
    if frozen and train.graphs and _frozen_norms(backbone):
        raise ValueError(
            "train.graphs normalises every layer with its batch, and optim.groups freezes some; "
            "leave out train.graphs, or set optim.frozen_statistics false"
        )


def hold_statistics_(backbone: nn.Module) -> None:
    """Put frozen BatchNorms into eval mode."""
    for norm in _frozen_norms(backbone):
        norm.eval()


def _frozen_norms(backbone: nn.Module) -> list[nn.Module]:
    """The BatchNorms that have parameters, none of which learns."""
    return [
        layer
        for layer in backbone.modules()
        if isinstance(layer, _BatchNorm)
        and layer.affine
        and not any(parameter.requires_grad for parameter in layer.parameters())
    ]
