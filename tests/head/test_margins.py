"""The one formula, its derivative, and what happens at its edges."""

import math

import pytest
import torch
from torch import Tensor, nn

from conftest import RunRanks
from facescale import Margin, MarginHead, arcface, combined, cosface
from facescale.head.margins import make_margin, register_margin, scaled, target, value_and_slopes

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


class NormMargin(nn.Module):
    """A toy of AdaFace's kind: the longer the embedding, the larger the margin; keeps a mean."""

    mean: Tensor

    def __init__(self, m: float = 0.4) -> None:
        super().__init__()
        self.m = m
        self.register_buffer("mean", torch.ones((), dtype=torch.float64))

    def observe_(self, norms: Tensor) -> None:
        self.mean.lerp_(norms.mean().double(), 0.5)

    def forward(self, cosine: Tensor, norm: Tensor) -> Tensor:
        return cosine - self.m * torch.tanh(norm / self.mean.to(norm))


def dense_loss_with_norms(
    embeddings: Tensor, labels: Tensor, centres: Tensor, mean: Tensor, scale: float
) -> Tensor:
    norm = embeddings.norm(dim=1, keepdim=True)
    cosine = (embeddings / norm) @ (centres / centres.norm(dim=1, keepdim=True)).T
    own = torch.nn.functional.one_hot(labels, len(centres)).double() * 0.4 * torch.tanh(norm / mean)
    return torch.nn.functional.cross_entropy(scale * (cosine - own), labels)


def batch_of(sizes: list[int]) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(1)
    embeddings = torch.randn(sum(sizes), 8, generator=random, dtype=torch.float64)
    embeddings *= torch.arange(1, sum(sizes) + 1)[:, None]
    return embeddings, torch.randint(20, (sum(sizes),), generator=random)


def steps_with_norms(rank: int, sizes: list[int], shards: int) -> tuple[Tensor, Tensor, Tensor]:
    """Embedding gradient of the last of two steps, centres and running mean."""
    head = MarginHead(20, 8, NormMargin(), 16.0, shards=shards, dtype=torch.float64)
    embeddings, labels = batch_of(sizes)
    mine = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
    for _ in range(2):
        own = embeddings[mine].clone().requires_grad_()
        head(own, labels[mine], lr=0.1).backward()
    assert own.grad is not None
    return own.grad, head.centres.full(), head.state_dict()["margin.mean"]


def test_a_margin_of_the_norm_has_the_exact_gradient() -> None:
    head = MarginHead(20, 8, NormMargin(), 16.0, dtype=torch.float64).eval()
    embeddings, labels = batch_of([7])
    embeddings.requires_grad_()
    loss = head(embeddings, labels, lr=0.0)
    loss.backward()
    truth = dense_loss_with_norms(
        embeddings, labels, head.centres.full(), torch.ones((), dtype=torch.float64), 16.0
    )
    (gradient,) = torch.autograd.grad(truth, embeddings)
    torch.testing.assert_close(loss, truth, rtol=0, atol=1e-12)
    torch.testing.assert_close(embeddings.grad, gradient, rtol=0, atol=1e-12)
    # It has a part along the embedding, which a margin of the cosine alone has not.
    assert (gradient * embeddings).sum(dim=1).abs().max() > 1e-3
    plain = MarginHead(20, 8, cosface(0.4), 16.0, dtype=torch.float64)
    (flat,) = torch.autograd.grad(plain(embeddings, labels, lr=0.0), embeddings)
    assert (flat * embeddings).sum(dim=1).abs().max() < 1e-12


@pytest.mark.parametrize(
    ("sizes", "shards"), [([3, 4], 1), ([3, 4], 2), ([2, 0, 4, 1], 2)], ids=str
)
def test_ranks_do_not_change_what_a_margin_learns_of_the_norms(
    run_ranks: RunRanks, sizes: list[int], shards: int
) -> None:
    gradient, centres, mean = steps_with_norms(0, [sum(sizes)], 1)
    answers = run_ranks(steps_with_norms, len(sizes), sizes, shards)
    together = torch.cat([gradient for gradient, _, _ in answers])
    torch.testing.assert_close(together, gradient, rtol=0, atol=1e-12)
    for _, other_centres, other_mean in answers:
        torch.testing.assert_close(other_centres, centres, rtol=0, atol=1e-12)
        torch.testing.assert_close(other_mean, mean, rtol=0, atol=1e-12)


def test_autograd_finds_the_slopes_that_a_margin_does_not_name() -> None:
    inside = torch.linspace(-0.9, 0.9, 50, dtype=torch.float64)
    norm = torch.ones_like(inside)
    arc = arcface(0.5)
    named = value_and_slopes(arc, inside, norm)
    found = value_and_slopes(lambda cosine, norm: arc(cosine), inside, norm)
    for one, other in zip(named, found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_a_margin_without_a_warm_up_of_its_own_is_mixed_with_the_cosine() -> None:
    norm = torch.ones_like(COSINE)
    half = scaled(lambda cosine, norm: cosine - 0.4 * norm, 0.5)
    torch.testing.assert_close(half(COSINE, norm), COSINE - 0.2)
    assert scaled(arcface(0.4), 0.5) == arcface(0.2)


def test_margins_are_made_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert make_margin("arcface", m=0.3) == arcface(0.3)
    assert make_margin("combined", m1=1.0, m2=0.2, m3=0.1) == combined(1.0, 0.2, 0.1)
    monkeypatch.setattr(target, "_FACTORIES", dict(target._FACTORIES))
    register_margin("norm")(NormMargin)
    assert isinstance(make_margin("norm", m=0.1), NormMargin)
    with pytest.raises(ValueError, match="margin 'arc' is not known; choose one of adaface, arcf"):
        make_margin("arc")
    with pytest.raises(ValueError, match="margin arcface has no 'm2'; it takes m, gradient"):
        make_margin("arcface", m2=0.3)
