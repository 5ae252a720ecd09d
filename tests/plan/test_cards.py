"""The plan for a card counts what the CUDA path allocates: beside real steps in the interpreter."""

import json
from dataclasses import replace
from typing import Any
from unittest import mock

import pytest
import torch

import facescale
from conftest import shortened
from facescale.cli import main
from facescale.config import (
    BackboneConfig,
    Config,
    HeadConfig,
    MarginConfig,
    OptimConfig,
    TrainConfig,
)
from facescale.head import draw
from facescale.head.walks import cuda
from facescale.plan import cards
from facescale.plan.costs import backbone_cost
from facescale.plan.ledger import Ledger
from facescale.plan.plan import Planner
from facescale.training.state import make_backbone
from triton_process import interpreted, needs_triton

CARD = torch.device("cuda")


def walked(rate: float, budget: int, dtype: torch.dtype) -> tuple[int, int]:
    """Peak of a real step of the head in the CUDA walk, and what the plan says of it."""
    rows, samples, dim = 1000, 24, 32
    head = facescale.MarginHead(
        rows, dim, sample_rate=rate, logits_budget=budget, dtype=dtype, shards=1
    )
    head.centres.start_()
    with mock.patch.object(draw, "library", return_value=None):
        sample = head.draw(torch.arange(samples) * 7)
    embeddings = torch.randn(samples, dim, requires_grad=True)
    with mock.patch.object(cuda, "LEAST_ROWS", 128), Ledger() as ledger:
        head(embeddings, sample, 0.1).backward()
    drawn = rows if sample.rows is None else len(sample.rows)
    with mock.patch.object(cards, "LEAST_ROWS", 128):
        cost = cards.walk_cost(drawn, samples, dim, "tf32x3", budget, rate < 1.0)
    numbers = 8 * drawn if rate < 1.0 else 0  # drawn before the ledger was opened
    return int(ledger.peak), cost.kept + cost.temporaries - numbers


@needs_triton
@pytest.mark.parametrize(
    ("rate", "budget", "dtype"),
    [
        (0.5, 1 << 28, torch.float32),
        (1.0, 1 << 28, torch.int8),
        (1.0, 4 * 24 * 256, torch.float32),
    ],
)
def test_the_head_takes_what_the_plan_says(rate: float, budget: int, dtype: torch.dtype) -> None:
    found, planned = interpreted(walked, rate, budget, dtype)
    assert planned == pytest.approx(found, rel=0.1)


def kept_by_the_backbone(name: str, recompute: bool) -> tuple[int, int, int]:
    """Bytes alive behind a real forward pass by the kernels, those planned, and without kernels."""
    with shortened():
        return _kept_by_the_backbone(name, recompute)


def _kept_by_the_backbone(name: str, recompute: bool) -> tuple[int, int, int]:
    backbone = BackboneConfig(name=name, image_size=28)
    config = Config(backbone=backbone, train=TrainConfig(recompute=recompute))
    network = make_backbone(config, CARD).train()
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = torch.zeros(3, 3, 112, 112, dtype=torch.uint8)
    images = images.contiguous(memory_format=torch.channels_last)
    with Ledger() as ledger:
        embeddings = network(images)
        found = ledger.live
    del embeddings
    planned = backbone_cost(config, 3, "cuda").activations - images.nbytes
    with mock.patch("facescale.acceleration.accelerate.available", return_value=False):
        other = replace(config, train=replace(config.train, micro_batch=7))  # not in the cache
        plain = backbone_cost(other, 3, "cuda")
    return int(found), planned, plain.activations - images.nbytes


@needs_triton
@pytest.mark.parametrize(("name", "recompute"), [("r18_half", False), ("r18_half", True)])
def test_the_backbone_keeps_what_the_plan_says(name: str, recompute: bool) -> None:
    found, planned, plain = interpreted(kept_by_the_backbone, name, recompute)
    assert planned == pytest.approx(found, rel=0.02)
    if not recompute:
        assert planned < 0.9 * plain  # PReLU's input is not stored


def plan_of(
    memory: int | None = None, batch: int = 64, num_classes: int = 200_000, **head: Any
) -> dict[str, int]:
    config = Config(
        backbone=BackboneConfig(name="y1", image_size=28),
        head=HeadConfig(**head),
    )
    return Planner(config, 1, "cuda").plan(batch, num_classes, memory).parts


@needs_triton
def test_logits_take_their_share_of_the_card() -> None:
    gib = 1 << 30
    small, large = plan_of(2 * gib), plan_of(80 * gib)
    bounded = plan_of(80 * gib, logits_mib=1)
    logits = 4 * 64 * 200_000
    assert large["logits, head"] - bounded["logits, head"] == pytest.approx(logits, rel=0.35)
    assert small["logits, head"] == large["logits, head"]  # 51 MB are within 256 MiB
    together, apart = (
        plan_of(batch=4, num_classes=20_000, overlap=overlap) for overlap in (True, False)
    )
    assert together["gradients"] > apart["gradients"]
    assert {"CUDA context", "workspaces", "holes between blocks"} <= large.keys()


@needs_triton
def test_most_identities_of_a_card_grow_with_less_in_a_row() -> None:
    def most(**head: Any) -> int:
        config = Config(
            backbone=BackboneConfig(name="y1", embedding_dim=512),
            head=HeadConfig(sample_rate=0.02, **head),
        )
        return Planner(config, 1, "cuda").most_identities(128, 80 << 30)

    exact, halves, bytes_ = (
        most(),
        most(rows="bfloat16"),
        most(rows="int8", momentum=0.0),
    )
    assert 16e6 < exact < 21e6
    assert 1.9 * exact < halves
    assert 6.5 * exact < bytes_


def test_a_plan_for_a_card_says_that_none_has_confirmed_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = ["plan", "emore_y1", "--train.batch_size", "8", "--memory", "80GiB"]
    for device, confirmed in (("cuda", False), ("cpu", True)):
        main([*options, "--device", device, "--json"])
        assert json.loads(capsys.readouterr().out)["confirmed"] == confirmed
        main([*options, "--device", device])
        assert ("No GPU has confirmed this plan" in capsys.readouterr().out) != confirmed


@needs_triton
@pytest.mark.parametrize(
    "changes",
    [
        {"head": HeadConfig(subcentres=3)},
        {"optim": OptimConfig(head_name="adamw")},
        {"head": HeadConfig(margin=MarginConfig(name="curricularface"))},
    ],
)
def test_a_head_that_the_kernels_do_not_serve_is_planned_in_blocks(changes: Any) -> None:
    backbone = BackboneConfig(name="y1", image_size=28)
    none: dict[str, Any] = {}
    plain, other = (
        Planner(Config(backbone=backbone, **options), 1, "cuda") for options in (none, changes)
    )
    found = other.plan(8, 50_000).parts
    with mock.patch.object(cards, "serves", return_value=False):
        in_blocks = [replace(one).plan(8, 50_000).parts for one in (plain, other)]
    assert found == in_blocks[1]
    assert plain.plan(8, 50_000).parts != in_blocks[0]
