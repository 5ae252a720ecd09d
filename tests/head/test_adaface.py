"""AdaFace's margin against its authors' answers, and its running statistics."""

import json
import math

import numpy as np
import pytest
import torch

import facescale
from facescale.head import AdaFace
from shared_data import shared_data


def test_the_authors_give_the_same_losses_gradients_and_statistics() -> None:
    for case in json.loads(shared_data("golden/adaface_head.json").read_text()):
        random = np.random.Generator(np.random.PCG64(case["seed"]))
        classes, dim, batch = case["classes"], case["dim"], case["batch"]
        centres = torch.from_numpy((random.standard_normal((classes, dim)) * 0.01).astype("f4"))
        margin = AdaFace(case["m"], case["h"], case["t_alpha"])
        head = facescale.MarginHead(
            classes,
            dim,
            margin,
            scale=case["scale"],
            momentum=0.0,
            weight_decay=0.0,
            dtype=torch.float64,
        )
        for step in case["steps"]:
            head.centres.table[:, 0] = centres
            rows = random.standard_normal((batch, dim)) * random.uniform(0.5, 1.5, (batch, 1))
            embeddings = torch.from_numpy(rows.astype("f4")).double().requires_grad_()
            labels = torch.from_numpy(random.integers(0, classes, batch))
            loss = head(embeddings, labels, lr=1.0)
            loss.backward()
            assert embeddings.grad is not None
            for ours, name in (
                (loss.detach(), "loss"),
                (embeddings.grad, "embedding_grad"),
                (centres.double() - head.centres.full(), "centre_grad"),
                (margin.mean, "batch_mean"),
                (margin.std, "batch_std"),
            ):
                theirs = torch.tensor(step[name], dtype=torch.float64)
                assert (ours - theirs).norm() <= 1e-7 * theirs.norm(), name


def test_in_eval_mode_the_statistics_stay() -> None:
    margin = AdaFace()
    head = facescale.MarginHead(10, 4, margin).eval()
    head(torch.randn(5, 4), torch.arange(5), lr=0.0)
    assert (margin.mean.item(), margin.std.item()) == (20.0, 100.0)


@pytest.mark.parametrize(
    ("norms", "mean", "std"),
    [([6.0], 13.0, 100.0), ([math.nan, 6.0], 20.0, 100.0), ([], 20.0, 100.0)],
    ids=["one sample", "not a number", "no sample"],
)
def test_what_a_batch_does_not_tell_is_kept(norms: list[float], mean: float, std: float) -> None:
    margin = AdaFace(t_alpha=0.5)
    margin.observe_(torch.tensor(norms))
    assert (margin.mean.item(), margin.std.item()) == (mean, std)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"m": 1.6}, r"m must be in \[0, pi / 2\), got 1.6"),
        ({"h": -1.0}, "h must be 0 or more, got -1.0"),
        ({"t_alpha": 0.0}, r"t_alpha must be in \(0, 1\], got 0.0"),
    ],
)
def test_bad_values_are_named(values: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AdaFace(**values)
