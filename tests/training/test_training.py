"""A run as a whole: stops and goes on, precisions, micro-batches, ranks."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from conftest import RunRanks
from facescale.backbones import registry
from facescale.backbones.vit import VisionTransformer
from facescale.checkpoint.folder import checkpoints
from facescale.config import (
    BackboneConfig,
    CheckpointConfig,
    Config,
    DataConfig,
    HeadConfig,
    MarginConfig,
    OptimConfig,
    ScheduleConfig,
    TrainConfig,
)
from facescale.head import TargetMargin, arcface, combined
from facescale.training import TrainState, build, train
from facescale.training.metrics import read_metrics
from facescale.training.micro_batch import MicroBatches
from facescale.training.resume import restore_, resume_, save
from runs import CPU, assert_equal_states, losses
from runs import small_run as small_run_of

pytestmark = pytest.mark.usefixtures("short_networks")


def small_run(**changes: Any) -> Config:
    """On small images: a step takes a tenth of the time."""
    backbone = BackboneConfig(name="y1", embedding_dim=16, image_size=28)
    return small_run_of(**({"backbone": backbone} | changes))


@pytest.fixture
def vit_tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """A ViT with masks and stochastic depth, by the name vit_tiny."""
    tiny = partial(VisionTransformer, width=16, depth=2, heads=2, drop_path=0.5, mask=0.2)
    monkeypatch.setitem(registry._BUILDERS, "vit_tiny", tiny)


@pytest.mark.usefixtures("vit_tiny")
@pytest.mark.parametrize(
    ("margin", "name"), [("combined", "y1"), ("adaface", "y1"), ("magface", "vit_tiny")]
)
def test_resume_continues_to_the_bit(tmp_path: Path, margin: str, name: str) -> None:
    config = small_run(
        head=HeadConfig(margin=MarginConfig(name=margin), sample_rate=0.5),
        backbone=BackboneConfig(name=name, embedding_dim=16),
    )
    straight, stopped = build(config, CPU), build(config, CPU)
    losses(straight, 2)
    losses(stopped, 2)
    save(stopped, tmp_path / "stopped")
    again = build(config, CPU)
    restore_(again, checkpoints(tmp_path / "stopped" / "checkpoints")[-1])
    assert again.position == 8
    assert losses(again, 2) == losses(straight, 2)
    assert_equal_states(again, straight)
    kept = [dict(state.head.named_buffers()) for state in (again, straight)]
    assert {name.removeprefix("margin.") for name in kept[0] if name.startswith("margin.")} == (
        {"mean", "std"} if margin == "adaface" else set()
    )
    assert all(torch.equal(kept[0][name], kept[1][name]) for name in kept[0])


def margin_of(**options: Any) -> TargetMargin:
    config = small_run(head=HeadConfig(margin=MarginConfig(**options)))
    return build(config, CPU).head.margin


def test_a_margin_is_chosen_by_name() -> None:
    assert margin_of(m1=1.1, m3=0.1) == combined(1.1, 0.5, 0.1)
    assert margin_of(name="arcface", m=0.3, gradient="straight-through") == arcface(
        0.3, "straight-through"
    )
    # m2 is another margin's, with a value in every config: it does not count
    assert str(margin_of(name="adaface", h=0.2, m2=0.3)) == "AdaFace(m=0.4, h=0.2, t_alpha=0.01)"
    assert "u_a=90.0" in str(margin_of(name="magface", u_a=90.0))
    with pytest.raises(ValueError, match="margin 'adface' is not known; choose one of adaface"):
        margin_of(name="adface")
    with pytest.raises(ValueError, match="margin magface has no 'h'; it takes l_a, u_a"):
        margin_of(name="magface", h=0.2)


def test_a_command_that_resumes_equals_one_that_never_stopped(tmp_path: Path) -> None:
    config = small_run()
    train(config, tmp_path / "whole")
    train(config, tmp_path / "parts")
    newest = checkpoints(tmp_path / "parts" / "checkpoints")[-1]
    assert newest.name == "step-00000004"
    newest.rename(tmp_path / "lost")  # as if it had been killed after step 2
    train(config, tmp_path / "parts", resume=True)
    whole, parts = (load_file(tmp_path / run / "model.safetensors") for run in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    steps = [row["step"] for row in read_metrics(tmp_path / "parts" / "metrics.jsonl")]
    assert steps == [1, 2, 3, 4]


def test_a_run_leaves_what_it_promises(tmp_path: Path) -> None:
    summary = train(small_run(), tmp_path)
    assert summary.steps == 4
    assert summary.images == 16
    assert 0 < summary.wait_s < summary.seconds
    names = {path.name for path in tmp_path.iterdir()}
    assert names >= {"config.yaml", "metrics.jsonl", "training.log", "model.safetensors"}
    assert names >= {"training.png", "checkpoints"}
    assert (tmp_path / "training.png").read_bytes().startswith(b"\x89PNG")
    log = (tmp_path / "training.log").read_text()
    assert "samples/sec   Loss" in log
    assert "Global Step: 4" in log


def test_only_the_last_checkpoints_stay(tmp_path: Path) -> None:
    config = small_run(checkpoint=CheckpointConfig(every=1, keep=2))
    train(config, tmp_path)
    left = [path.name for path in (tmp_path / "checkpoints").iterdir()]
    assert sorted(left) == ["step-00000003", "step-00000004"]


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    state = build(small_run(), CPU)
    save(state, tmp_path)
    (path,) = checkpoints(tmp_path / "checkpoints")
    with pytest.raises(ValueError, match="has 50 classes, but this run has 60"):
        restore_(
            build(small_run(data=DataConfig(path="synthetic", num_classes=60, num_images=64)), CPU),
            path,
        )
    with pytest.raises(ValueError, match="its backbone is"):
        restore_(build(small_run(backbone=BackboneConfig(name="y1", embedding_dim=8)), CPU), path)


def test_another_seed_than_that_of_the_checkpoint_is_told(tmp_path: Path) -> None:
    save(build(small_run(seed=3), CPU), tmp_path)
    assert resume_(build(small_run(seed=3), CPU), tmp_path) == []
    (line,) = resume_(build(small_run(), CPU), tmp_path)
    assert line.startswith("seed is 0, but the checkpoint was written with 3: ")


@pytest.mark.parametrize(("precision", "tolerance"), [("bf16", 0.02), ("fp16", 0.004)])
def test_low_precision_follows_float32(precision: str, tolerance: float) -> None:
    answers = []
    for chosen in ("float32", precision):
        # Of two samples, BatchNorm would make 1 and -1 in any precision.
        settings: Any = {"batch_size": 8, "steps": 1, "precision": chosen}
        state = build(small_run(train=TrainConfig(**settings)), CPU)
        assert state.scaler.is_enabled() == (chosen == "fp16")
        answers.append(losses(state, 1))
        assert state.head.centres.table.dtype == torch.float32
    assert answers[0] != answers[1]
    assert answers[1] == pytest.approx(answers[0], rel=tolerance)


def test_an_overflow_skips_the_step_and_lowers_the_scale() -> None:
    state = build(small_run(train=TrainConfig(batch_size=2, steps=1, precision="fp16")), CPU)
    state.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    before = [p.clone() for p in state.backbone.parameters()]
    losses(state, 1)
    after = state.backbone.parameters()
    assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))
    assert state.scaler.get_scale() == 2.0**126


def overflow_on_one_rank(rank: int) -> bool:
    state = build(small_run(train=TrainConfig(batch_size=2, steps=1, precision="fp16")), CPU)
    before = [p.clone() for p in state.backbone.parameters()]
    if rank == 1:
        next(state.backbone.parameters()).register_hook(lambda gradient: gradient * torch.inf)
    losses(state, 1)
    after = state.backbone.parameters()
    return all(torch.equal(old, new) for old, new in zip(before, after, strict=True))


def test_an_overflow_on_one_rank_skips_the_step_of_all(run_ranks: RunRanks) -> None:
    assert run_ranks(overflow_on_one_rank, 2) == [True, True]


@pytest.mark.parametrize("precision", ["float32", "fp16"])
def test_a_loss_that_is_not_finite_stops_before_any_weight_moves(precision: Any) -> None:
    state = build(small_run(train=TrainConfig(batch_size=4, steps=4, precision=precision)), CPU)
    with torch.no_grad():
        next(state.backbone.parameters()).fill_(torch.nan)
    centres = state.head.centres.table.clone()
    with pytest.raises(FloatingPointError, match=r"step 0: the loss is not finite; lower optim.lr"):
        losses(state, 1)
    assert torch.equal(state.head.centres.table, centres)
    assert all(buffer.isfinite().all() for buffer in state.backbone.buffers())


@pytest.mark.parametrize("kind", ["linear", "cosine", "polynomial"])
def test_the_rate_goes_on_from_where_it_was_with_another_batch(tmp_path: Path, kind: Any) -> None:
    def state_of(batch: int) -> TrainState:
        optim = OptimConfig(schedule=ScheduleConfig(kind=kind))
        length = TrainConfig(global_batch_size=batch, epochs=2.0)  # of 64 images
        return build(small_run(optim=optim, train=length), CPU)

    old = state_of(8)
    old.step, old.position = 4, 32
    save(old, tmp_path)
    for batch, steps in ((8, 12), (4, 24), (16, 6)):
        state = state_of(batch)
        assert resume_(state, tmp_path) == []
        assert state.num_steps == 4 + steps
        assert state.rate(4) == pytest.approx(old.rate(4))
        assert state.rate(4 + steps // 2) == pytest.approx(old.rate(10))
        assert state.rate(state.num_steps) == pytest.approx(0.0)


def small_net() -> nn.Module:
    torch.manual_seed(1)
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.3), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(144, 5)).double()


def test_micro_batches_equal_portions_that_are_all_kept() -> None:
    images = torch.randn(8, 3, 8, 8, dtype=torch.float64)
    kept, again = small_net(), small_net()
    torch.manual_seed(5)
    truth = torch.cat([kept(portion) for portion in images.split(3)])
    torch.manual_seed(5)
    embeddings = MicroBatches(again, 3)(images)
    assert torch.equal(embeddings, truth)
    truth.square().sum().backward()
    embeddings.square().sum().backward()
    for one, other in zip(kept.parameters(), again.parameters(), strict=True):
        assert one.grad is not None
        assert other.grad is not None
        assert torch.equal(one.grad, other.grad)
    for mine, theirs in zip(kept.buffers(), again.buffers(), strict=True):
        assert torch.equal(mine, theirs)


def two_steps(rank: int, **changes: Any) -> tuple[list[float], Tensor, Tensor]:
    state = build(small_run(**changes), CPU)
    answer = losses(state, 2)
    weights = torch.cat([p.detach().flatten() for p in state.backbone.parameters()])
    return answer, weights, state.head.centres.full()


@pytest.mark.parametrize("micro_batch", [None, 2])
def test_placements_of_the_head_train_alike(run_ranks: RunRanks, micro_batch: int | None) -> None:
    answers = []
    for shards in (1, 2):
        changes = {
            "head": HeadConfig(shards=shards),
            "train": TrainConfig(global_batch_size=8, steps=2, micro_batch=micro_batch),
        }
        first, second = run_ranks(_two_steps_of, 2, changes)
        assert torch.equal(first[1], second[1])  # the ranks' backbones, to the bit
        assert torch.equal(first[2], second[2])
        answers.append((torch.tensor(first[0]) + torch.tensor(second[0]), *first[1:]))
    # BatchNorm over two samples amplifies the order of a float32 sum: hence 1e-4 and no less.
    for one, other in zip(*answers, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def _two_steps_of(rank: int, changes: dict[str, Any]) -> tuple[list[float], Tensor, Tensor]:
    return two_steps(rank, **changes)


def stop_and_go_on(rank: int, folder: Path) -> tuple[list[float], list[float]]:
    config = small_run(head=HeadConfig(sample_rate=0.5))
    straight, stopped = build(config, CPU), build(config, CPU)
    losses(straight, 1)
    losses(stopped, 1)
    save(stopped, folder)
    again = build(config, CPU)
    restore_(again, checkpoints(folder / "checkpoints")[-1])
    return losses(straight, 1), losses(again, 1)


def test_two_ranks_resume_to_the_bit(run_ranks: RunRanks, tmp_path: Path) -> None:
    for straight, again in run_ranks(stop_and_go_on, 2, tmp_path):
        assert straight == again


def test_a_batch_too_small_for_batchnorm_is_refused() -> None:
    with pytest.raises(ValueError, match="leaves 1 samples to the last of 1 ranks"):
        build(small_run(train=TrainConfig(batch_size=1)), CPU)
    with pytest.raises(ValueError, match="micro_batch 3 leaves a portion of one sample of 4"):
        build(small_run(train=TrainConfig(batch_size=4, micro_batch=3)), CPU)


def test_run_json_is_plain(tmp_path: Path) -> None:
    save(build(small_run(), CPU), tmp_path)
    (path,) = checkpoints(tmp_path / "checkpoints")
    assert json.loads((path / "run.json").read_text())["step"] == 0
