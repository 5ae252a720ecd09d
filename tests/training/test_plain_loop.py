"""The plain loop is arcface_torch's algorithm, and `facescale train` learns as fast as it does."""

import json
import statistics
from pathlib import Path

import numpy as np
import pytest
import torch

from facescale.config import (
    BackboneConfig,
    Config,
    DataConfig,
    HeadConfig,
    MarginConfig,
    OptimConfig,
    ScheduleConfig,
    TrainConfig,
)
from facescale.training import train as train_ours
from facescale.training.metrics import read_metrics
from facescale.training.optim import make_schedule
from plain_loop import Settings, batches, head_loss, rate, read_images, train
from shared_data import shared_data

CPU = torch.device("cpu")


def test_the_head_gives_arcface_torchs_loss_and_gradients() -> None:
    for case in json.loads(shared_data("golden/arcface_torch_head.json").read_text()):
        random = np.random.Generator(np.random.PCG64(case["seed"]))
        classes, dim, batch = case["classes"], case["dim"], case["batch"]
        drawn = random.standard_normal((classes, dim)).astype(np.float32) * np.float32(0.01)
        centres = torch.from_numpy(drawn).requires_grad_()
        drawn = random.standard_normal((batch, dim)).astype(np.float32)
        features = torch.from_numpy(drawn).requires_grad_()
        labels = torch.from_numpy(random.integers(0, classes, batch))
        head_loss(features, centres, labels, Settings(margin=tuple(case["margin"]))).backward()
        for ours, name in ((features.grad, "embedding_grad"), (centres.grad, "centre_grad")):
            theirs = torch.tensor(case[name])
            assert ours is not None
            assert (ours - theirs).norm() <= 1e-4 * theirs.norm(), name


def test_the_rate_is_that_of_facescales_linear_schedule() -> None:
    for warmup in (0, 5):
        settings = Settings(steps=20, warmup=warmup)
        schedule = make_schedule(ScheduleConfig(kind="linear", warmup=warmup), 20)
        assert [rate(step, settings) for step in range(20)] == pytest.approx(
            [schedule(step) for step in range(20)]
        )


def test_three_steps_learn() -> None:
    images = torch.randint(0, 256, (8, 3, 112, 112), dtype=torch.uint8)
    settings = Settings(image_size=28, embedding_size=16, batch_size=8, steps=3, lr=0.01)
    _, losses = train((images, torch.arange(8)), 8, settings)
    assert len(losses) == 3
    assert losses[2] < losses[0]


def test_an_epoch_has_each_image_once_and_mirrors_half_of_them() -> None:
    images = torch.zeros(100, 3, 2, 2, dtype=torch.uint8)
    images[:, :, :, 1] = 1  # a mirror image has it on the left
    taken = batches(images, torch.arange(100), Settings(batch_size=50), torch.Generator())
    (first, labels), (second, others) = next(taken), next(taken)
    assert sorted([*labels.tolist(), *others.tolist()]) == list(range(100))
    assert 30 < (torch.cat([first, second])[:, 0, 0, 0] == 1).sum() < 70


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_facescale_train_learns_as_the_plain_loop(tmp_path: Path) -> None:
    """Mean loss of the last 20 of 100 steps, three seeds each: within the spread of the seeds."""
    folder = shared_data("cfp324/train.rec").parent
    settings = Settings(image_size=28, embedding_size=128, batch_size=64, steps=100)
    data = read_images(folder, CPU)
    plain, ours = [], []
    for seed in range(3):
        _, losses = train(data, 324, Settings(**(vars(settings) | {"seed": seed})))
        plain.append(statistics.fmean(losses[-20:]))
        train_ours(same_run(folder, settings, seed), tmp_path / f"{seed}")
        rows = [row for row in read_metrics(tmp_path / f"{seed}/metrics.jsonl") if "loss" in row]
        ours.append(rows[-1]["loss"])
    print(f"plain {plain}, facescale {ours}")
    spread = max(statistics.stdev(plain), statistics.stdev(ours), 0.02 * statistics.fmean(plain))
    assert abs(statistics.fmean(plain) - statistics.fmean(ours)) < 2 * spread


def same_run(folder: Path, settings: Settings, seed: int) -> Config:
    """`settings` as a config of `facescale train`."""
    return Config(
        data=DataConfig(path=str(folder)),
        backbone=BackboneConfig(
            name=settings.network,
            family="arcface_torch",
            embedding_dim=settings.embedding_size,
            image_size=settings.image_size,
        ),
        head=HeadConfig(
            scale=settings.scale, margin=MarginConfig(m2=0.5, gradient="straight-through")
        ),
        optim=OptimConfig(lr=settings.lr, clip_norm=5.0),
        train=TrainConfig(batch_size=settings.batch_size, steps=settings.steps),
        seed=seed,
        device="cpu",
        log_every=20,
    )
