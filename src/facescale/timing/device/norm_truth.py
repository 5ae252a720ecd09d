"""BatchNorm, PReLU and shortcut in Triton against torch in float64: on a GPU, or interpreted."""

from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional

from facescale.kernels.cuda.norm_parameters import Parameters
from facescale.timing.device.head_truth import relative

MOMENTUM, EPS = 0.1, 2e-5


def make(shape: tuple[int, ...], seed: int, dtype: torch.dtype) -> Tensor:
    """Random numbers, channels_last where they are an image."""
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randn(shape, generator=generator)
    if len(shape) == 4:
        numbers = numbers.contiguous(memory_format=torch.channels_last)
    return numbers.to(dtype)


def poison() -> Any:
    """Let every fresh tensor of an operator start as NaN: two patches."""
    empty, like = torch.Tensor.new_empty, torch.empty_like

    def fill(fresh: Tensor) -> Tensor:
        return fresh.fill_(torch.nan) if fresh.is_floating_point() else fresh

    return (
        mock.patch.object(torch.Tensor, "new_empty", lambda *a, **k: fill(empty(*a, **k))),
        mock.patch.object(torch, "empty_like", lambda *a, **k: fill(like(*a, **k))),
    )


def norm_errors(
    shape: tuple[int, ...],
    dtype_name: str,
    slopes: int,
    shortcut: bool,
    training: bool = True,
    offset: float = 0.0,
    device: torch.device | str = "cpu",
) -> dict[str, float]:
    """Relative errors of both passes.

    Args:
        shape: (b, c, h, w), or (b, c).
        dtype_name: Of the image.
        slopes: Of PReLU: one a channel, one for all, or 0 for no PReLU.
        shortcut: Whether an image is added.
        training: Whether statistics are those of the image.
        offset: Mean of the image.
        device: A CUDA device; a CPU where Triton interprets kernels.

    Raises:
        ArithmeticError: A value is not finite, or of another type or layout than the image.
    """
    dtype, channels = getattr(torch, dtype_name), shape[1]
    x = (make(shape, 1, torch.float32) * 3 + offset).to(dtype).to(device)
    beside = make(shape, 2, dtype).to(device) if shortcut else None
    gradient = make(shape, 3, dtype).to(device)
    random = torch.Generator().manual_seed(0)
    weight, bias, mean, spread = torch.randn(4, channels, generator=random).to(device)
    weight = 1 + 0.1 * weight
    slope = 0.25 + 0.1 * torch.rand(slopes, generator=random).to(device) if slopes else None
    parameters = Parameters(weight, bias, slope)
    running = mean, 1 + spread.abs()
    before = [t.double() for t in running]
    truth, expected = _truth((x, weight, bias, slope, beside), before, gradient, training)
    y, found = _by_kernels(x, parameters, running, gradient, beside, training)
    for image in (y, found[0]):
        assert image is not None, "x has a gradient"
        if (image.dtype, image.stride()) != (dtype, x.stride()):
            raise ArithmeticError(f"{image.dtype} {image.stride()} in place of those of the image")
    errors = {"y": relative(y, truth)}
    errors |= {"mean": relative(running[0], before[0])}
    errors |= {"variance": relative(running[1], before[1])}
    names = ("x", "weight", "bias", "slope")
    pairs = zip(names, found, expected, strict=False)
    return errors | {name: relative(value, t) for name, value, t in pairs if value is not None}


def _truth(
    given: tuple[Tensor | None, ...], running: list[Tensor], gradient: Tensor, training: bool
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The result in float64, and the gradients of what of `given` is there; moves `running`."""
    exact = [None if t is None else t.double() for t in given]
    image, weight, bias, slope, rest = exact
    assert image is not None, "the others may be missing"
    inputs = [t.requires_grad_() for t in exact if t is not None]
    y = functional.batch_norm(image, running[0], running[1], weight, bias, training, MOMENTUM, EPS)
    y = y if slope is None else functional.prelu(y, slope)
    y = y if rest is None else y + rest
    return y.detach(), torch.autograd.grad(y, inputs, gradient.double())


def _by_kernels(
    x: Tensor,
    parameters: Any,
    running: tuple[Tensor, Tensor],
    gradient: Tensor,
    shortcut: Tensor | None,
    training: bool,
) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    """The result of the kernels and their gradients; moves `running`."""
    from facescale.kernels.cuda import norm

    one, two = poison()
    with one, two:
        if training:
            y, mean, inverse = norm.batch_norm(
                x, parameters, *running, momentum=MOMENTUM, eps=EPS, shortcut=shortcut
            )
        else:
            mean, inverse = running[0], (running[1] + EPS).rsqrt()
            y = norm.normalize(x, parameters, mean, inverse, shortcut)
        return y, norm.batch_norm_backward(
            gradient, x, parameters, mean, inverse, training=training
        )
