"""The head in one process: its gradients, its limits, and arcface_torch's own answer."""

import json
import math

import numpy as np
import pytest
import torch
from torch import Tensor

import facescale
from shared_data import shared_data


def make_head(**changes: object) -> facescale.MarginHead:
    values: dict[str, object] = {"scale": 16.0, "dtype": torch.float64} | changes
    return facescale.MarginHead(3000, 8, **values)  # type: ignore[arg-type]


def make_batch(size: int = 6) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(5)
    embeddings = torch.randn(size, 8, generator=random, dtype=torch.float64)
    return embeddings.requires_grad_(), torch.randint(3000, (size,), generator=random)


@pytest.mark.parametrize("margin", [facescale.arcface(0.5), facescale.cosface(0.4)], ids=str)
def test_gradient_of_the_embeddings_is_exact(margin: facescale.Margin) -> None:
    head = make_head(margin=margin)
    embeddings, labels = make_batch()
    assert torch.autograd.gradcheck(lambda x: head(x, labels, lr=0.0), (embeddings,))


def test_a_loss_that_is_scaled_scales_every_gradient() -> None:
    moved = []
    for factor in (1.0, 3.0):
        head = make_head(weight_decay=0.0)
        embeddings, labels = make_batch()
        before = head.centres.full().clone()
        (head(embeddings, labels, lr=0.1) * factor).backward()
        assert embeddings.grad is not None
        moved.append((embeddings.grad / factor, (head.centres.full() - before) / factor))
    for one, three in zip(*moved, strict=True):
        torch.testing.assert_close(one, three)


def test_learning_rate_zero_moves_nothing() -> None:
    head = make_head()
    head.centres.start_()
    before = head.centres.table.clone()
    embeddings, labels = make_batch()
    head(embeddings, labels, lr=0.0).backward()
    assert embeddings.grad is not None
    assert embeddings.grad.abs().sum() > 0
    assert torch.equal(head.centres.table, before)


def test_logits_computed_again_equal_logits_kept() -> None:
    centres = []
    for budget in (0, 60_000, 1 << 30):
        head = make_head(logits_budget=budget, sample_rate=0.7)
        for _ in range(2):
            embeddings, labels = make_batch()
            head(embeddings, labels, lr=0.1).backward()
        centres.append(head.centres.table)
    assert torch.equal(centres[0], centres[1])
    assert torch.equal(centres[0], centres[2])


def test_length_of_embeddings_and_centres_does_not_matter_to_the_loss() -> None:
    head = make_head()
    embeddings, labels = make_batch()
    loss = head(embeddings, labels, lr=0.0)
    head.centres.table[:, 0] *= 7.0
    torch.testing.assert_close(head(embeddings * 5.0, labels, lr=0.0), loss)


@pytest.mark.parametrize("side", [1.0, -1.0])
@pytest.mark.parametrize("margin", [facescale.arcface(0.5), facescale.cosface(0.4)], ids=str)
def test_an_embedding_on_its_centre_or_opposite_is_safe(
    side: float, margin: facescale.Margin
) -> None:
    head = make_head(margin=margin, dtype=torch.float32, scale=64.0)
    embeddings = (side * head.centres.full()[:4] * 100).clone().requires_grad_()
    head(embeddings, torch.arange(4), lr=0.1).backward()
    assert embeddings.grad is not None
    assert embeddings.grad.isfinite().all()
    assert head.centres.table.isfinite().all()


def test_float32_agrees_with_float64_within_its_precision() -> None:
    answers = []
    for dtype in (torch.float32, torch.float64):
        head = make_head(dtype=dtype, scale=64.0)
        embeddings, labels = make_batch()
        loss = head(embeddings, labels, lr=0.1)
        loss.backward()
        answers.append((loss.double(), head.centres.full().double()))
    torch.testing.assert_close(answers[0], answers[1], rtol=1e-5, atol=1e-5)


def test_start_values_are_normal_and_independent_of_the_dtype() -> None:
    start = facescale.MarginHead(20_000, 16).centres.full()
    assert start.std().item() == pytest.approx(0.01, rel=0.01)
    assert start.mean().item() == pytest.approx(0.0, abs=1e-4)
    assert len(start.unique(dim=0)) == 20_000
    assert torch.equal(
        make_head().centres.full().float(), make_head(dtype=torch.float32).centres.full()
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_classes": 0}, "num_classes must be at least 1, got 0"),
        ({"sample_rate": 0.0}, r"sample_rate must be in \(0, 1\], got 0.0"),
        ({"scale": 1000.0}, r"scale must be in \(0, 300\], got 1000.0"),
        ({"shards": 2}, r"head.shards is 2, but must divide the number of ranks \(1\)"),
        (
            {"dtype": torch.float16},
            "class centres are one of float32, float64, bfloat16, int8, got torch.float16",
        ),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, object], message: str) -> None:
    values: dict[str, object] = {"num_classes": 10, "embedding_dim": 4} | arguments
    with pytest.raises(ValueError, match=message):
        facescale.MarginHead(**values)  # type: ignore[arg-type]


def test_bad_batches_are_named() -> None:
    head = make_head()
    with pytest.raises(ValueError, match=r"embeddings are \(2, 7\), expected \(batch, 8\)"):
        head(torch.randn(2, 7), torch.tensor([0, 1]), lr=0.1)
    with pytest.raises(ValueError, match="labels are"):
        head(torch.randn(2, 8), torch.tensor([0.0, 1.0]), lr=0.1)
    with pytest.raises(ValueError, match="label 3000 but num_classes is 3000"):
        head(torch.randn(2, 8), torch.tensor([0, 3000]), lr=0.1)


def test_arcface_torch_gives_the_same_loss_and_gradients() -> None:
    for case in json.loads(shared_data("golden/arcface_torch_head.json").read_text()):
        random = np.random.Generator(np.random.PCG64(case["seed"]))
        classes, dim, batch = case["classes"], case["dim"], case["batch"]
        centres = random.standard_normal((classes, dim)).astype(np.float32) * np.float32(0.01)
        features = torch.from_numpy(random.standard_normal((batch, dim)).astype(np.float32))
        labels = torch.from_numpy(random.integers(0, classes, batch))
        m1, m2, m3 = case["margin"]
        head = facescale.MarginHead(
            classes,
            dim,
            facescale.combined(m1, m2, m3, gradient="straight-through"),
            momentum=0.0,
            weight_decay=0.0,
        )
        head.centres.table[:, 0] = torch.from_numpy(centres)
        # It takes the logarithm of a probability of at least 1e-30; ours is not cut off.
        losses = [head(features[i : i + 1], labels[i : i + 1], lr=0.0) for i in range(batch)]
        cut_off = torch.stack(losses).clamp(max=-math.log(1e-30))
        head(features.requires_grad_(), labels, lr=1.0).backward()
        assert features.grad is not None
        to_centres = torch.from_numpy(centres) - head.centres.full()
        assert cut_off.mean().item() == pytest.approx(case["loss"], rel=1e-4)
        for ours, name in ((features.grad, "embedding_grad"), (to_centres, "centre_grad")):
            theirs = torch.tensor(case[name])
            assert (ours - theirs).norm() <= 1e-4 * theirs.norm(), name
