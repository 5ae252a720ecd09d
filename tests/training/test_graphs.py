"""CUDA graphs of the backbone: captured with the run's own batch, and said where they cannot be."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from facescale import backbones
from facescale.config import BackboneConfig, Config, DataConfig, OptimConfig, TrainConfig
from facescale.training import TrainState, build, graphs, state, train_step
from facescale.training.graphs import graphs_note, takes_graphs
from facescale.training.recompute import Recomputed

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("tiny_y1")


def make(**train: Any) -> TrainState:
    config = Config(
        data=DataConfig(path="synthetic", num_classes=30, num_images=64, threads=1),
        backbone=BackboneConfig(name="y1"),
        train=TrainConfig(**{"batch_size": 4, "steps": 8} | train),
    )
    return build(config, CPU)


@pytest.fixture
def captured() -> Iterator[list[tuple[Any, ...]]]:
    """A double of the capture that takes both passes on the CPU, as torch does before it."""
    seen: list[tuple[Any, ...]] = []

    def capture(module: nn.Module, images: tuple[Tensor], **options: Any) -> nn.Module:
        (image,) = images
        seen.append((tuple(image.shape), image.dtype, image.stride(1), module.training))
        seen.append((torch.is_autocast_enabled("cpu"), torch.is_autocast_cache_enabled()))
        for _ in range(options["num_warmup_iters"]):
            learning = [p for p in module.parameters() if p.requires_grad]
            torch.autograd.grad(module(image).sum(), learning, allow_unused=True)
        return module

    with (
        mock.patch.object(torch.cuda, "make_graphed_callables", capture),
        mock.patch.object(graphs, "why_not", return_value=None),
    ):
        yield seen


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_capture_leaves_the_run_as_it_was(
    captured: list[tuple[Any, ...]], precision: Any
) -> None:
    plain, graphed = make(precision=precision, graphs=False), make(precision=precision, graphs=True)
    assert captured == [
        ((4, 3, 112, 112), torch.uint8, 1, True),
        (precision == "bf16", False),
    ]
    for one, other in zip(
        plain.backbone.state_dict().values(), graphed.backbone.state_dict().values(), strict=True
    ):
        assert torch.equal(one, other)
    assert all(p.grad is None for p in graphed.backbone.parameters())
    with plain.loader() as loader:
        batch = next(loader)
    assert torch.equal(train_step(plain, batch), train_step(graphed, batch))


@pytest.mark.parametrize(
    ("network", "device", "ranks", "train", "taken"),
    [
        ("r18_half", "cuda", 1, {}, True),
        ("r18_half", "cuda", 2, {}, False),
        ("r18_half", "cuda", 2, {"graphs": True}, True),
        ("r18_half", "cuda", 1, {"graphs": False}, False),
        ("r18_half", "cuda", 1, {"compile": True}, False),
        ("r18_half", "cuda", 1, {"micro_batch": 2}, False),
        ("r18_half", "cpu", 1, {}, False),
        ("vit_t", "cuda", 1, {}, False),
        ("vit_t", "cuda", 1, {"graphs": True}, True),
    ],
)
def test_graphs_are_taken_where_they_are_known_to_work_or_asked_for(
    network: str, device: str, ranks: int, train: dict[str, Any], taken: bool
) -> None:
    with torch.device("meta"):
        backbone = backbones.build(network)
    config = Config(backbone=BackboneConfig(name=network), train=TrainConfig(**train))
    assert takes_graphs(config, device, ranks, backbone) == taken


def test_frozen_statistics_are_not_captured_unasked() -> None:
    with torch.device("meta"):
        backbone = backbones.build("r18_half")
    config = Config(optim=OptimConfig(groups=["conv1:0"]))
    assert not takes_graphs(config, "cuda", 1, backbone)


def test_where_there_are_no_graphs_the_run_goes_on_and_says_so() -> None:
    asked = TrainConfig(graphs=True)
    assert graphs_note(TrainConfig(), "cpu", 1, nn.Linear(1, 1)) is None
    plain, large = nn.Linear(1, 1), nn.Sequential(Recomputed())
    assert graphs_note(asked, "cuda", 8, plain) is None
    for train, device, network, reason in (
        (asked, "cpu", plain, "there is no CUDA device"),
        (replace(asked, micro_batch=4), "cuda", plain, "train.micro_batch"),
        (asked, "cuda", large, "train.recompute"),  # as large ViTs do by themselves
        (replace(asked, sync_batchnorm=True), "cuda", plain, "train.sync_batchnorm"),
    ):
        note = graphs_note(train, device, 8, network)
        assert note is not None
        assert note.startswith(f"train.graphs is without effect: {reason}")
    assert make(graphs=True).config.train.graphs  # built without a card


@pytest.mark.parametrize(("device", "mode"), [("cuda", "reduce-overhead"), ("cpu", None)])
def test_a_compiled_backbone_makes_its_own_graphs(device: str, mode: str | None) -> None:
    config = Config(
        backbone=BackboneConfig(name="y1"), train=TrainConfig(compile=True, graphs=True)
    )
    with (
        mock.patch.object(nn.Module, "compile") as compiled,
        mock.patch.object(nn.Module, "to", lambda self, *_, **__: self),
    ):
        state._place_backbone(config, torch.device(device), make().world)
    compiled.assert_called_once_with(mode=mode)
