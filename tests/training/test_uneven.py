"""Work that does not divide evenly: right, or refused with a clear line."""

from typing import Any

import pytest
import torch
from torch import Tensor

import facescale
from conftest import RunRanks
from facescale.config import DataConfig, TrainConfig
from facescale.training import build
from reference import dense_combined, dense_step
from runs import CPU, losses, small_run

CLASSES, DIM, LR = 37, 12, 0.5
MARGIN = (1.0, 0.3, 0.1)
SETTINGS: dict[str, Any] = {"scale": 16.0, "momentum": 0.9, "weight_decay": 5e-4}


def crowded(rank: int) -> dict[str, Tensor]:
    """A step in which the first of two shards, which draws one row, has eleven of its own."""
    head = facescale.MarginHead(
        CLASSES, DIM, facescale.combined(*MARGIN), sample_rate=0.06, dtype=torch.float64, **SETTINGS
    )
    embeddings, labels = crowd()
    mine = slice(0, 4) if rank == 0 else slice(4, None)
    before = head.centres.full()
    own = embeddings[mine].clone().requires_grad_()
    loss = head(own, labels[mine], LR)
    loss.backward()
    assert own.grad is not None
    return {
        "loss": loss.detach(),
        "gradient": own.grad,
        "before": before,
        "after": head.centres.full(),
    }


def crowd() -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(5)
    embeddings = torch.randn(11, DIM, generator=random, dtype=torch.float64)
    return embeddings, torch.arange(11)


def test_a_shard_with_more_people_than_its_sample_keeps_them_all(run_ranks: RunRanks) -> None:
    first, second = run_ranks(crowded, 2)
    moved = (first["before"] != first["after"]).any(dim=1).nonzero().flatten().tolist()
    assert moved[:11] == [*range(11)]
    # Each shard has one drawn row too; that of the first one may be one of the eleven.
    half = -(-CLASSES // 2)
    assert sum(row < half for row in moved) in (11, 12)
    assert sum(row >= half for row in moved) == 1
    weight = first["before"]
    loss, gradient, weight, _ = dense_step(
        *(*crowd(), weight, torch.zeros_like(weight), moved),
        margin=dense_combined(*MARGIN),
        lr=LR,
        **SETTINGS,
    )
    torch.testing.assert_close(first["loss"] + second["loss"], loss, rtol=0, atol=1e-12)
    both = torch.cat([first["gradient"], second["gradient"]])
    torch.testing.assert_close(both, gradient, rtol=0, atol=1e-12)
    torch.testing.assert_close(first["after"], weight, rtol=0, atol=1e-12)


def lonely(rank: int) -> tuple[float, float]:
    """Loss and largest gradient where there is but one person, in the first shard."""
    head = facescale.MarginHead(1, DIM, sample_rate=0.5, dtype=torch.float64, weight_decay=0.0)
    embeddings = torch.randn(3, DIM, dtype=torch.float64, requires_grad=True)
    loss = head(embeddings, torch.zeros(3, dtype=torch.int64), LR)
    loss.backward()
    assert embeddings.grad is not None
    return loss.item(), embeddings.grad.abs().max().item()


@pytest.mark.parametrize("ranks", [1, 2])
def test_one_identity_has_nothing_to_learn(run_ranks: RunRanks, ranks: int) -> None:
    for loss, gradient in run_ranks(lonely, ranks):
        assert loss == pytest.approx(0.0, abs=1e-12)
        assert gradient == pytest.approx(0.0, abs=1e-12)


def refused(rank: int, settings: dict[str, Any]) -> str:
    with pytest.raises(ValueError, match="samples to the last of 3 ranks") as error:
        build(small_run(train=TrainConfig(steps=1, **settings)), CPU)
    return str(error.value)


def test_a_batch_smaller_than_the_world_is_refused(run_ranks: RunRanks) -> None:
    plain, synced = {"global_batch_size": 2}, {"global_batch_size": 2, "sync_batchnorm": True}
    for line in run_ranks(refused, 3, plain):
        assert line.endswith("BatchNorm needs 2; take train.global_batch_size of 6 or more")
    for line in run_ranks(refused, 3, synced):
        assert line.endswith("BatchNorm needs 1; take train.global_batch_size of 3 or more")


def uneven(rank: int) -> list[float]:
    train = TrainConfig(global_batch_size=7, steps=3, precision="float64", sync_batchnorm=True)
    people = DataConfig(
        path="synthetic", num_classes=2, num_images=10
    )  # 7 of 10, then over the end
    return losses(build(small_run(train=train, data=people), CPU), 3)


@pytest.mark.usefixtures("tiny_y1")
def test_more_ranks_than_people_and_shares_that_differ_train_alike(run_ranks: RunRanks) -> None:
    (alone,) = run_ranks(uneven, 1)
    shares = run_ranks(uneven, 4)
    assert [sum(step) for step in zip(*shares, strict=True)] == pytest.approx(alone, abs=1e-9)
