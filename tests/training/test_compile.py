"""A compiled backbone is traced with accelerated layers, autocast and several ranks.

Graphs are captured, differentiated and run by torch's `aot_eager`, which leaves out the generation
of code: that takes minutes, and one slow test of `test_faster_steps.py` does it.
"""

from functools import partialmethod
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from conftest import RunRanks
from facescale.config import BackboneConfig, Config, DataConfig, HeadConfig, TrainConfig
from facescale.kernels.cpu.build import missing
from facescale.training import build, train_step

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning"),
    pytest.mark.usefixtures("short_networks"),
]


def run(
    name: str, compiled: bool, image_size: int = 28, **train: Any
) -> tuple[list[float], dict[str, Tensor], int]:
    """Losses of three steps, the weights behind them, and the graphs that were compiled."""
    config = Config(
        data=DataConfig(path="synthetic", num_classes=30, num_images=64, threads=1),
        backbone=BackboneConfig(
            name=name, image_size=image_size, dropout=0.0 if name != "y1" else None
        ),
        head=HeadConfig(sample_rate=0.5),
        train=TrainConfig(**{"batch_size": 4, "steps": 8, "compile": compiled} | train),
    )
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    traced = partialmethod(nn.Module.compile, backend="aot_eager")

    def compile_(module: nn.Module, mode: str | None) -> None:
        traced.__get__(module)()

    with mock.patch.object(nn.Module, "compile", compile_):
        state = build(config, torch.device("cpu"))
    with state.loader() as loader:
        losses = [train_step(state, next(loader)).item() for _ in range(3)]
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    return losses, state.backbone.state_dict(), graphs


def assert_alike(name: str, rel: float, **train: Any) -> None:
    plain, traced = run(name, False, **train), run(name, True, **train)
    assert plain[2] == 0
    assert 1 <= traced[2] <= 4
    assert traced[0] == pytest.approx(plain[0], rel=rel)
    assert traced[1].keys() == plain[1].keys()
    counts = [key for key in plain[1] if key.endswith("num_batches_tracked")]
    assert counts
    assert all(torch.equal(traced[1][key], plain[1][key]) for key in counts)


@pytest.mark.parametrize("name", [pytest.param("r18_half", marks=pytest.mark.slow), "y1"])
def test_accelerated_layers_are_traced(name: str) -> None:
    if missing() is not None:
        pytest.skip("there are no compiled kernels to trace")
    assert_alike(name, 1e-3)


def test_autocast_is_traced() -> None:
    assert_alike("r18_half", 5e-2, precision="bf16")


def two_ranks(rank: int) -> list[Any]:
    return [run("y1", compiled, image_size=112) for compiled in (False, True)]


@pytest.mark.usefixtures("tiny_y1")
def test_ranks_compile_too(run_ranks: RunRanks) -> None:
    for plain, traced in run_ranks(two_ranks, 2):
        assert traced[2] >= 1
        assert traced[0] == pytest.approx(plain[0], rel=1e-3)


def test_what_a_large_network_asks_for_is_traced_as_well() -> None:
    """A checkpoint of blocks without BatchNorm lies inside the graph."""
    from facescale.backbones import build as backbone_of
    from facescale.training.recompute import Recomputed, recompute_

    network = backbone_of("vit_t").train()
    recompute_(network)
    assert isinstance(network.blocks[0], Recomputed)  # type: ignore[index]
    pixels = torch.randint(256, (2, 3, 112, 112), dtype=torch.uint8)
    gradients = []
    for module in (network, torch.compile(network, backend="aot_eager")):
        torch.manual_seed(0)
        network.zero_grad()
        module(pixels).square().sum().backward()
        gradients.append([p.grad.norm() for p in network.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(gradients[1])
