"""The heads that are timed do the same work, and the harness times them in turn."""

import pytest
import torch

from facescale.benchmark.baselines import DenseHead, OwnHead, SampledHead
from facescale.benchmark.kernels import HeadCase, HeadTimes, time_heads


def test_all_contenders_move_their_centres_alike() -> None:
    random = torch.Generator().manual_seed(0)
    embeddings, labels = torch.randn(6, 16, generator=random), torch.randint(40, (6,))
    own, dense, sampled = OwnHead(40, 16, 1.0), DenseHead(40, 16, 1.0), SampledHead(40, 16, 1.0)
    start = own.head.centres.full().clone()
    with torch.no_grad():
        dense.weight.copy_(start)
        sampled.weight.copy_(start)
    heads: list[OwnHead | DenseHead | SampledHead] = [own, dense, sampled]
    gradients = []
    for head in heads:
        for _ in range(2):
            features = embeddings.clone().requires_grad_()
            head.step(features, labels)
        assert features.grad is not None
        gradients.append(features.grad)
    for other in gradients[1:]:
        torch.testing.assert_close(other, gradients[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(dense.weight.detach(), own.head.centres.full(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(sampled.weight, own.head.centres.full(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [OwnHead, DenseHead, SampledHead])
def test_a_tenth_of_the_rows_is_drawn(
    kind: type[OwnHead] | type[DenseHead] | type[SampledHead],
) -> None:
    head = kind(200, 8, 0.1)
    rows = head.head.centres.table[:, 0] if isinstance(head, OwnHead) else head.weight
    before = rows.detach().clone()
    head.step(torch.randn(4, 8).requires_grad_(), torch.tensor([0, 50, 100, 199]))
    moved = (rows.detach() != before).any(dim=1)
    assert moved[[0, 50, 100, 199]].all()
    # arcface_torch's plan decays every row, the others move what they drew
    assert int(moved.sum()) == (200 if kind is DenseHead else 20)


def test_contenders_take_turns() -> None:
    times = time_heads(HeadCase(2000, 0.5, batch=4, dim=16), 2, ("facescale", "dense tuned"))
    assert times.interleaved
    assert {name: len(seconds) for name, seconds in times.steps.items()} == {
        "facescale": 2,
        "dense tuned": 2,
    }
    assert times.floor > 0


def test_ratios_are_taken_round_by_round() -> None:
    case = HeadCase(1000, 0.1, batch=2, dim=8)
    steps = {"facescale": [1.0, 2.0, 4.0], "dense": [3.0, 8.0, 4.0]}
    times = HeadTimes(case, True, steps, gemm=[1e6], copy=[1e6])
    assert times.ratio("dense") == 3.0
    assert times.floor == pytest.approx((3 * 2 * 100 * 8 * 2 + 5 * 4 * 100 * 8) / 1e6)
