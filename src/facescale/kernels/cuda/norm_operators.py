"""BatchNorm with PReLU and shortcut as operators of torch, which knows their fake tensors then.

This file needs no triton. The kernels are imported at the first call on real tensors.
"""

import torch
from torch import Tensor

from facescale.kernels.cpu.operators import define
from facescale.kernels.cuda.norm_parameters import Parameters


def _norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    slope: Tensor | None,
    shortcut: Tensor | None,
    running_mean: Tensor,
    running_variance: Tensor,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    from facescale.kernels.cuda.norm import batch_norm

    return batch_norm(
        x, Parameters(weight, bias, slope), running_mean, running_variance,
        momentum=momentum, eps=eps, shortcut=shortcut,
    )  # fmt: skip


def _norm_fake(x: Tensor, *_: object) -> tuple[Tensor, Tensor, Tensor]:
    mean = x.new_empty(x.shape[1], dtype=torch.float32)
    return torch.empty_like(x), mean, torch.empty_like(mean)


batch_norm = define(
    "card_norm(Tensor x, Tensor weight, Tensor bias, Tensor? slope, Tensor? shortcut, "
    "Tensor(a!) running_mean, Tensor(b!) running_variance, float momentum, float eps)"
    " -> (Tensor, Tensor, Tensor)",
    _norm_fake,
    _norm,
    on=("CPU", "CUDA"),
)
"""`norm.batch_norm`: the output, mean and 1 / deviation of each channel."""


def _backward(
    gradient: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    slope: Tensor | None,
    mean: Tensor,
    inverse: Tensor,
) -> tuple[Tensor, Tensor]:
    from facescale.kernels.cuda.norm import gradients

    return gradients(gradient, x, Parameters(weight, bias, slope), mean, inverse)


def _backward_fake(gradient: Tensor, x: Tensor, weight: Tensor, *_: object) -> tuple[Tensor, ...]:
    return torch.empty_like(x), weight.new_empty(3, len(weight))


batch_norm_backward = define(
    "card_norm_backward(Tensor gradient, Tensor x, Tensor weight, Tensor bias, Tensor? slope, "
    "Tensor mean, Tensor inverse) -> (Tensor, Tensor)",
    _backward_fake,
    _backward,
    on=("CPU", "CUDA"),
)
"""`norm.gradients`: that of x, and totals (3, C) from which `of_parameters` takes the others."""
