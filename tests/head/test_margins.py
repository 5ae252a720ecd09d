"""The one formula, its derivative, and what happens at its edges."""

import math

import pytest
import torch
from torch import Tensor

from facescale import Margin, arcface, combined, cosface

COSINE = torch.linspace(-0.99, 0.99, 199, dtype=torch.float64)
MARGINS = [arcface(0.5), cosface(0.4), combined(1.0, 0.3, 0.2), combined(1.35, 0.0, 0.0)]


def closed_form(margin: Margin, cosine: Tensor) -> Tensor:
    return torch.cos(margin.m1 * torch.acos(cosine) + margin.m2) - margin.m3


@pytest.mark.parametrize("margin", MARGINS, ids=str)
def test_value_and_slope_are_the_formula_and_its_derivative(margin: Margin) -> None:
    cosine = COSINE.clone().requires_grad_()
    truth = closed_form(margin, cosine)
    (slope,) = torch.autograd.grad(truth.sum(), cosine)
    torch.testing.assert_close(margin(COSINE), truth.detach(), rtol=0, atol=1e-14)
    torch.testing.assert_close(margin.slope(COSINE), slope, rtol=1e-9, atol=1e-12)


def test_straight_through_changes_the_slope_and_not_the_value() -> None:
    exact, through = arcface(0.5), arcface(0.5, gradient="straight-through")
    assert torch.equal(exact(COSINE), through(COSINE))
    assert torch.equal(through.slope(COSINE), torch.ones_like(COSINE))
    at_half = exact.slope(torch.tensor([0.5], dtype=torch.float64)).item()
    theta = math.pi / 3
    assert at_half == pytest.approx(math.sin(theta + 0.5) / math.sin(theta), rel=1e-12)


@pytest.mark.parametrize("margin", MARGINS, ids=str)
@pytest.mark.parametrize("cosine", [1.0, -1.0, 1.0 + 1e-6, -1.0 - 1e-6])
def test_edges_and_rounding_beyond_them_stay_finite(margin: Margin, cosine: float) -> None:
    at = torch.tensor([cosine])
    assert margin(at).isfinite().all()
    assert margin.slope(at).isfinite().all()


def test_what_reaches_the_embedding_at_the_edge_is_bounded() -> None:
    # d cosine / d embedding along the unit sphere is sin(theta): times the slope at most m1.
    theta = torch.logspace(-9, -1, 50, dtype=torch.float64)
    pull = arcface(0.5).slope(torch.cos(theta)) * torch.sin(theta)
    assert pull.abs().max() <= 1.0 + 1e-6


def test_past_pi_the_formula_is_kept_and_turns() -> None:
    past = torch.tensor([math.cos(math.pi - 0.2)], dtype=torch.float64)
    assert arcface(0.5)(past).item() == pytest.approx(math.cos(math.pi + 0.3), abs=1e-12)
    assert arcface(0.5).slope(past).item() < 0
    assert arcface(0.5, gradient="straight-through").slope(past).item() == 1.0


def test_scaled_grows_from_no_margin_to_the_whole() -> None:
    margin = combined(1.2, 0.4, 0.1)
    assert margin.scaled(0.0) == Margin()
    assert margin.scaled(1.0) == margin
    assert margin.scaled(0.5) == Margin(1.1, 0.2, 0.05)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"m1": 0.0}, "m1 must be greater than 0"),
        ({"m2": -0.1}, r"m2 is an angle in \[0, pi\)"),
        ({"m3": math.nan}, "m3 must be 0 or more"),
        ({"gradient": "easy"}, "gradient must be 'exact' or 'straight-through', got 'easy'"),
    ],
)
def test_bad_values_are_named(values: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Margin(**values)  # type: ignore[arg-type]
