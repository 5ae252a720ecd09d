"""MagFace's margin at its edges; its loss and gradients are in test_worlds."""

import pytest
import torch

from facescale.head import MagFace
from facescale.head.margins import value_and_slopes


def test_the_logit_falls_as_the_angle_grows() -> None:
    margin = MagFace()
    cosine = torch.linspace(1.0, -1.0, 2001, dtype=torch.float64)
    for norm in (1.0, 60.0, 200.0):
        logits = margin(cosine, torch.full_like(cosine, norm))
        assert (logits.diff() < 1e-3).all()  # but for a jump where theta + m is pi
        assert (logits.diff() < 0).float().mean() > 0.99


@pytest.mark.parametrize("cosine", [1.0, -1.0, 1.0 + 1e-6, -1.0 - 1e-6])
def test_edges_and_rounding_beyond_them_stay_finite(cosine: float) -> None:
    for part in value_and_slopes(MagFace(), torch.tensor([cosine]), torch.tensor([50.0])):
        assert part.isfinite().all()


def test_only_norms_inside_the_bounds_get_a_gradient() -> None:
    norm = torch.tensor([5.0, 50.0, 200.0], requires_grad=True)
    margin = MagFace()
    (margin(torch.zeros(3), norm) + margin.penalty(norm)).sum().backward()
    assert norm.grad is not None
    assert norm.grad[[0, 2]].tolist() == [0.0, 0.0]
    assert norm.grad[1] != 0.0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"l_a": 120.0}, "norms must be 0 < l_a < u_a, got 120.0 and 110.0"),
        ({"u_margin": 0.1}, "margins must be 0 <= l_margin <= u_margin < pi / 2, got 0.45 and 0.1"),
        ({"lambda_g": -1.0}, "lambda_g must be 0 or more, got -1.0"),
    ],
)
def test_bad_values_are_named(values: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MagFace(**values)
