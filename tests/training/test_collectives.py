"""What a step sends is what the formula says, counted while it runs."""

import math
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from conftest import RunRanks
from facescale.config import CheckpointConfig, DataConfig, HeadConfig, TrainConfig
from facescale.head import Sample
from facescale.head.walks.blocks import BLOCK_ROWS
from facescale.training import build, train, train_step
from facescale.training.metrics import read_metrics
from runs import CPU, small_run

DIM, BATCH = 16, 4


def counted(
    rank: int, shards: int, rate: float, synced: bool, classes: int, joint: bool
) -> dict[str, dict[str, int]]:
    """Calls and bytes of the third step, by collective and group."""
    config = small_run(
        data=DataConfig(path="synthetic", num_classes=classes, num_images=64, threads=1),
        head=HeadConfig(shards=shards, sample_rate=rate),
        train=TrainConfig(batch_size=BATCH, steps=3, sync_batchnorm=synced),
    )
    state = build(config, CPU)
    state.head.joint_samples = 1000 if joint else 0
    samples, draw = [], state.head.draw

    def keep(labels: Tensor, counts: list[int] | None = None) -> Sample:
        samples.append(draw(labels, counts))
        return samples[-1]

    state.head.draw = keep  # type: ignore[method-assign]
    names = ("world", "head", "shard", "replicate")
    with state.loader() as loader:
        for _ in range(3):  # the first learns how large batches are, and DDP its buckets
            for group in state.groups():
                group.traffic.calls.clear()
                group.traffic.sent.clear()
            train_step(state, next(loader))
    answer: dict[str, dict[str, int]] = {"calls": {}, "sent": {}}
    for name, group in zip(names, state.groups(), strict=True):
        for operation, calls in group.traffic.calls.items():
            answer["calls"][f"{name} {operation}"] = calls
            answer["sent"][f"{name} {operation}"] = group.traffic.sent[operation]
    gradients = sum(p.numel() for p in state.backbone.parameters() if p.requires_grad)
    answer["sent"]["gradients"] = 4 * gradients
    rows = samples[-1].compact().rows
    answer["calls"]["rows"] = len(state.head.centres) if rows is None else len(rows)
    norms = [m for m in state.backbone.modules() if "BatchNorm" in type(m).__name__]
    answer["calls"]["norms"] = len(norms)
    answer["sent"]["channels"] = sum(norm.num_features for norm in norms)  # type: ignore[misc]
    return answer


def formula(ranks: int, shards: int, rows: int, joint: bool) -> dict[str, Any]:
    """What a rank sends, and in how many calls, where `rows` of its shard join."""
    copies, group_batch = ranks // shards, BATCH * shards
    batch = group_batch * copies if joint else group_batch
    calls, sent = {}, {}
    if ranks > 1:  # labels, before the backbone
        calls["head all_gather"] = 1
        sent["head all_gather"] = (ranks - 1) * 8 * BATCH
    if shards > 1:
        calls["shard all_gather"] = 1  # embeddings and their norms
        sent["shard all_gather"] = (shards - 1) * BATCH * 4 * (DIM + 1)
        calls["shard all_reduce"] = 1
        sent["shard all_reduce"] = 2 * (shards - 1) * 16 * batch // shards
        calls["shard reduce_scatter"] = 1
        sent["shard reduce_scatter"] = (shards - 1) * 4 * BATCH * DIM
    if copies > 1:
        calls["replicate all_gather"] = 1  # norms, and embeddings for a joint step
        numbers = DIM + 1 if joint else 1
        sent["replicate all_gather"] = (copies - 1) * group_batch * 4 * numbers
    if copies > 1 and not joint:
        calls["replicate all_reduce"] = math.ceil(rows / BLOCK_ROWS["cpu"])
        sent["replicate all_reduce"] = 2 * (copies - 1) * 4 * rows * DIM // copies
    return {"calls": calls, "sent": sent}


@pytest.mark.usefixtures("tiny_y1")
@pytest.mark.parametrize(
    ("ranks", "shards", "rate", "synced", "classes", "joint"),
    [
        (1, 1, 1.0, True, 50, False),
        (2, 1, 1.0, False, 50, True),
        (2, 1, 0.9, False, 5000, False),  # three blocks of momentum
        (2, 2, 1.0, True, 50, False),
        (2, 2, 0.5, False, 50, False),
        (4, 2, 0.8, False, 50, False),
        (4, 2, 0.8, False, 50, True),
    ],
)
def test_a_step_sends_what_the_formula_says(
    run_ranks: RunRanks,
    ranks: int,
    shards: int,
    rate: float,
    synced: bool,
    classes: int,
    joint: bool,
) -> None:
    for answer in run_ranks(counted, ranks, shards, rate, synced, classes, joint):
        calls, sent = answer["calls"], answer["sent"]
        gradients, channels = sent.pop("gradients"), sent.pop("channels")
        rows, norms = calls.pop("rows"), calls.pop("norms")
        truth = formula(ranks, shards, rows, joint)
        if classes > 50:
            assert calls["replicate all_reduce"] == 3
        if ranks > 1:
            buckets = calls.pop("world bucket")
            assert 1 <= buckets <= 2
            assert sent.pop("world bucket") == pytest.approx(
                2 * (ranks - 1) * gradients / ranks, abs=buckets
            )
        if ranks > 1 and synced:
            assert calls.pop("world all_gather") == norms  # float64
            assert sent.pop("world all_gather") == (ranks - 1) * 8 * (2 * channels + norms)
            assert calls.pop("world all_reduce") == norms
            assert sent.pop("world all_reduce") == pytest.approx(
                2 * (ranks - 1) * 8 * 2 * channels / ranks, abs=norms
            )
        assert calls == truth["calls"]
        assert sent == truth["sent"]


def run_and_read(rank: int, folder: Path) -> list[dict[str, Any]]:
    train(small_run(checkpoint=CheckpointConfig(every=100)), folder)
    return read_metrics(folder / "metrics.jsonl")


@pytest.mark.usefixtures("tiny_y1")
def test_a_run_reports_its_traffic(run_ranks: RunRanks, tmp_path: Path) -> None:
    rows, _ = run_ranks(run_and_read, 2, tmp_path / "run")
    # 4 of the head (labels, embeddings, statistics, gradient), 1 bucket, 1 stop flag
    assert [row["collectives"] for row in rows[2:]] == [6.0] * 2
    assert all(row["sent_mib"] > 0 for row in rows)
    (alone,) = run_ranks(run_and_read, 1, tmp_path / "alone")
    assert [row["collectives"] for row in alone] == [0.0] * 4
