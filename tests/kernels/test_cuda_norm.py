"""BatchNorm, PReLU and shortcut in Triton, interpreted on the CPU, against torch in float64."""

from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from triton_process import interpreted, needs_triton

pytestmark = needs_triton

MOMENTUM, EPS = 0.1, 2e-5
DTYPES = {"float32": 1e-5, "bfloat16": 2**-7, "float16": 2**-10}


def error(value: Tensor, truth: Tensor) -> float:
    assert value.isfinite().all()
    return float((value.double() - truth).norm() / truth.norm())


def make(shape: tuple[int, ...], seed: int, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randn(shape, generator=generator)
    if len(shape) == 4:
        numbers = numbers.contiguous(memory_format=torch.channels_last)
    return numbers.to(dtype)


def poison() -> Any:
    """Lets every fresh tensor of an operator start as NaN."""
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
) -> dict[str, float]:
    """Relative errors of both passes."""
    from facescale.kernels.cuda import norm

    dtype, channels = getattr(torch, dtype_name), shape[1]
    x = (make(shape, 1, torch.float32) * 3 + offset).to(dtype)
    beside = make(shape, 2, dtype) if shortcut else None
    gradient = make(shape, 3, dtype)
    torch.manual_seed(0)  # other tests share this process
    weight, bias = 1 + 0.1 * torch.randn(channels), torch.randn(channels)
    slope = 0.25 + 0.1 * torch.rand(slopes) if slopes else None
    parameters = norm.Parameters(weight, bias, slope)
    running = torch.randn(channels), 1 + torch.rand(channels)
    before = [t.double() for t in running]

    exact = [None if t is None else t.double() for t in (x, weight, bias, slope, beside)]
    inputs = [t.requires_grad_() for t in exact if t is not None]
    image, w, b, s, rest = exact
    assert image is not None
    truth = functional.batch_norm(image, before[0], before[1], w, b, training, MOMENTUM, EPS)
    truth = truth if s is None else functional.prelu(truth, s)
    truth = truth if rest is None else truth + rest
    expected = torch.autograd.grad(truth, inputs, gradient.double())

    one, two = poison()
    with one, two:
        if training:
            y, mean, inverse = norm.batch_norm(
                x, parameters, *running, momentum=MOMENTUM, eps=EPS, shortcut=beside
            )
        else:
            mean, inverse = running[0], (running[1] + EPS).rsqrt()
            y = norm.normalize(x, parameters, mean, inverse, beside)
        found = norm.batch_norm_backward(gradient, x, parameters, mean, inverse, training=training)
    assert y.dtype == found[0].dtype == dtype
    assert y.stride() == found[0].stride() == x.stride()
    errors = {"y": error(y, truth.detach())}
    errors |= {"mean": error(running[0], before[0]), "variance": error(running[1], before[1])}
    names = ("x", "weight", "bias", "slope")
    pairs = zip(names, found, expected, strict=False)
    return errors | {name: error(value, t) for name, value, t in pairs if value is not None}


SHAPES = [(3, 16, 5, 7), (2, 24, 9, 9), (2, 192, 6, 5), (37, 64), (1, 512, 3, 3)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("slopes", "shortcut"), [(0, False), (0, True), (1, False)])
def test_both_passes_are_those_of_torch(
    shape: tuple[int, ...], slopes: int, shortcut: bool
) -> None:
    errors = interpreted(norm_errors, shape, "float32", slopes, shortcut)
    assert max(errors.values()) < 1e-5, errors


@pytest.mark.parametrize("dtype", DTYPES)
def test_images_of_few_bits_are_rounded_once(dtype: str) -> None:
    errors = interpreted(norm_errors, (4, 32, 7, 5), dtype, 32, True)
    assert max(errors["y"], errors["x"]) < DTYPES[dtype], errors
    assert max(value for name, value in errors.items() if name not in "xy") < 1e-5, errors


def test_running_statistics_normalise_without_moving() -> None:
    errors = interpreted(norm_errors, (2, 24, 5, 7), "float32", 24, True, False)
    assert max(errors.values()) < 1e-5, errors


def test_a_large_mean_costs_no_digits() -> None:
    errors = interpreted(norm_errors, (8, 16, 12, 12), "float32", 16, False, True, 300.0)
    # float32 itself stores these numbers to 1e-5 of their deviation.
    assert errors["mean"] < 1e-6, errors
    assert errors["variance"] < 1e-5
    assert max(errors.values()) < 2e-5


@pytest.mark.slow
def test_an_image_of_many_tiles_is_that_of_torch() -> None:
    errors = interpreted(norm_errors, (16, 64, 56, 56), "float32", 64, True)
    assert max(errors.values()) < 1e-5, errors
