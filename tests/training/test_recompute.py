"""Activations that are computed again in the backward pass: the same run in less memory."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from conftest import RunRanks
from facescale import backbones
from facescale.backbones.backbone import Backbone
from facescale.config import BackboneConfig, Config, DataConfig, HeadConfig, TrainConfig
from facescale.plan.costs import backbone_cost
from facescale.plan.ledger import Ledger
from facescale.training import build, train_step
from facescale.training.recompute import Recomputed, recompute_
from facescale.training.state import make_backbone

CPU = torch.device("cpu")

pytestmark = pytest.mark.usefixtures("short_networks")


class Outside(Backbone):
    """A backbone of somebody else: blocks with BatchNorm and dropout, in a module of its own."""

    def __init__(self, embedding_dim: int = 16) -> None:
        super().__init__(embedding_dim=embedding_dim)
        self.stem = nn.Conv2d(3, 8, 4, 4)
        self.body = nn.Module()
        self.body.blocks = nn.ModuleList(_Dropping() for _ in range(2))
        self.head = nn.Linear(8, embedding_dim)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.stem(pixels.to(self.stem.weight.dtype) / 255)
        for block in self.body.blocks:  # type: ignore[union-attr]
            x = block(x)
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


class _Dropping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = nn.functional.dropout(self.norm(self.conv(x)), 0.5, self.training)
        return x + y.relu()


@pytest.fixture(autouse=True)
def _outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(backbones.registry._BUILDERS, "outside", Outside)


NETWORKS: dict[str, dict[str, Any]] = {
    "r18_half": {"image_size": 28, "embedding_dim": 16},
    "y1": {"image_size": 28},
    "vit_t": {},
    "outside": {},
}


def run(
    name: str, recompute: bool | None, **train: Any
) -> tuple[list[float], dict[str, Tensor], int]:
    """Losses of two steps, all that the network then holds, and the blocks under a checkpoint."""
    config = Config(
        data=DataConfig(path="synthetic", num_classes=30, num_images=64, threads=1),
        backbone=BackboneConfig(name=name, **NETWORKS[name]),
        head=HeadConfig(sample_rate=0.5),
        train=TrainConfig(**{"batch_size": 4, "steps": 8, "recompute": recompute} | train),
    )
    state = build(config, CPU)
    with state.loader() as loader:
        losses = [train_step(state, next(loader)).item() for _ in range(2)]
    blocks = sum(isinstance(module, Recomputed) for module in state.backbone.modules())
    return losses, state.backbone.state_dict(), blocks


def assert_same(one: Any, other: Any, name: str = "") -> None:
    """To the bit; but chains of native operators of y1 end at a block, which changes rounding."""
    assert one[1].keys() == other[1].keys()
    rtol, atol = (1e-3, 1e-4) if name == "y1" else (0.0, 0.0)
    assert one[0] == pytest.approx(other[0], rel=1e-5 if name == "y1" else 0.0)
    torch.testing.assert_close(dict(one[1]), dict(other[1]), rtol=rtol, atol=atol)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(
    "train",
    [
        {},
        pytest.param({"precision": "bf16"}, marks=pytest.mark.slow),
        {"precision": "float64", "micro_batch": 2},
    ],
    ids=str,
)
def test_a_run_stays_the_same(name: str, train: dict[str, Any]) -> None:
    plain, again = run(name, False, **train), run(name, True, **train)
    assert plain[2] == 0
    assert again[2] >= 2
    assert_same(again, plain, name)


def two_ranks(rank: int, name: str, synced: bool) -> list[Any]:
    return [run(name, recompute, sync_batchnorm=synced) for recompute in (False, True)]


@pytest.mark.parametrize(("name", "synced"), [("r18_half", True), ("y1", False)])
def test_ranks_train_the_same_too(run_ranks: RunRanks, name: str, synced: bool) -> None:
    for plain, again in run_ranks(two_ranks, 2, name, synced):
        assert_same(again, plain, name)


@pytest.mark.parametrize("name", ["r18_half", "y1", "vit_t"])
def test_a_step_keeps_less(name: str) -> None:
    kept = []
    for recompute in (False, True):
        backbone = BackboneConfig(name=name, **NETWORKS[name])
        config = Config(backbone=backbone, train=TrainConfig(recompute=recompute))
        network = make_backbone(config, CPU).train()
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        images = torch.zeros(4, 3, 112, 112, dtype=torch.uint8)
        images = images.contiguous(memory_format=torch.channels_last)
        with Ledger() as ledger:
            embeddings = network(images)
            kept.append(ledger.live)
        del embeddings
        cost = backbone_cost(config, 4)
        assert abs(cost.activations - images.nbytes - kept[-1]) < 0.02 * kept[-1]
    assert kept[1] < 0.7 * kept[0]


def test_what_a_network_asks_for_is_done_unless_told_otherwise() -> None:
    def blocks(name: str, recompute: bool | None) -> int:
        config = Config(backbone=BackboneConfig(name=name), train=TrainConfig(recompute=recompute))
        with torch.device("meta"):
            network = make_backbone(config, CPU)
        return sum(isinstance(module, Recomputed) for module in network.modules())

    assert [blocks("vit_b", None), blocks("vit_b", False), blocks("vit_t", None)] == [24, 0, 0]


def test_a_network_without_blocks_is_refused() -> None:
    class Flat(Backbone):
        def __init__(self) -> None:
            super().__init__(embedding_dim=2)
            self.fc = nn.Linear(4, 2)

    with pytest.raises(ValueError, match=r"train\.recompute needs blocks, and backbone Flat has"):
        recompute_(Flat())
    with pytest.raises(ValueError, match=r"leave out train\.recompute"):
        TrainConfig(compile=True, recompute=True)
