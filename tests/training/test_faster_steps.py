"""What makes a step faster changes none of its results beyond rounding."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from facescale.config import (
    BackboneConfig,
    Config,
    DataConfig,
    HeadConfig,
    OptimConfig,
    TrainConfig,
)
from facescale.plan.costs import backbone_cost
from facescale.training import build, train_step

gpu = pytest.mark.gpu
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
OPTIM, TRAIN = OptimConfig(lr=0.02, clip_norm=5.0), TrainConfig(batch_size=4, steps=8)


@pytest.fixture(autouse=True)
def _tf32_as_it_was() -> Iterator[None]:
    before = torch.backends.cudnn.allow_tf32
    yield
    torch.backends.cudnn.allow_tf32 = before


def run(device: str = "cpu", optim: OptimConfig = OPTIM, **train: Any) -> tuple[list[float], Any]:
    """Losses of three steps, and the weights after them."""
    config = Config(
        data=DataConfig(path="synthetic", num_classes=50, num_images=64, threads=1),
        backbone=BackboneConfig(name="y1", embedding_dim=16),
        head=HeadConfig(sample_rate=0.5),
        optim=optim,
        train=replace(TRAIN, **train),
    )
    state = build(config, torch.device(device))
    with state.loader() as loader:
        losses = [train_step(state, next(loader)).item() for _ in range(3)]
    return losses, {name: w.cpu().clone() for name, w in state.backbone.state_dict().items()}


def assert_alike(one: Any, other: Any, tolerance: float) -> None:
    assert one[0] == pytest.approx(other[0], rel=tolerance)
    torch.testing.assert_close(one[1], other[1], rtol=tolerance, atol=tolerance)


@pytest.mark.usefixtures("tiny_y1")
@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_the_fused_optimizer_is_the_same_one(name: Any) -> None:
    optim = replace(OPTIM, name=name)
    plain = run(optim=optim, precision="float64")
    fused = run(optim=replace(optim, fused=True), precision="float64")
    assert_alike(fused, plain, 1e-9)


def test_the_plan_knows_the_fused_optimizer() -> None:
    plain, fused = (
        backbone_cost(Config(backbone=BackboneConfig(name="y1"), optim=optim), 2)
        for optim in (OPTIM, replace(OPTIM, fused=True))
    )
    assert fused.optimiser == plain.optimiser > 0


@pytest.mark.usefixtures("tiny_y1")
@pytest.mark.parametrize(("precision", "rounds"), [("tf32", True), ("float32", False)])
def test_float32_is_float32_unless_told_otherwise(precision: str, rounds: bool) -> None:
    run(precision=precision)
    assert torch.backends.cudnn.allow_tf32 == rounds
    assert torch.get_float32_matmul_precision() == "highest"  # of neck and head


@pytest.mark.slow
@pytest.mark.usefixtures("tiny_y1")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_a_compiled_backbone_learns_the_same_under_the_same_names() -> None:
    plain, compiled = run(), run(compile=True)
    assert compiled[1].keys() == plain[1].keys()
    assert_alike(compiled, plain, 1e-4)


@gpu
@needs_cuda
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize(
    ("options", "tolerance"),
    [
        ({}, 1e-3),
        ({"channels_last": False}, 1e-3),
        ({"compile": True}, 1e-3),
        ({"precision": "tf32"}, 3e-2),
        ({"precision": "bf16"}, 1e-1),
        ({"precision": "fp16"}, 1e-1),
    ],
    ids=str,
)
def test_cuda_learns_what_the_cpu_learns(options: dict[str, Any], tolerance: float) -> None:
    fused = replace(OPTIM, fused=True)
    there, here = run("cuda", fused, **options), run("cpu")
    assert there[0] == pytest.approx(here[0], rel=tolerance)
