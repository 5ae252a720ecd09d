"""Sums of gradients, the average of weights, and frozen layers, in steps and across a resume."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from conftest import RunRanks
from facescale.checkpoint import folder as checkpoint
from facescale.checkpoint import unpack
from facescale.config import (
    BackboneConfig,
    CheckpointConfig,
    Config,
    HeadConfig,
    OptimConfig,
    ScheduleConfig,
    TrainConfig,
)
from facescale.distributed import Group
from facescale.training import TrainState, build, train
from facescale.training.groups import hold_statistics_
from facescale.training.kept import Kept
from facescale.training.metrics import read_metrics
from facescale.training.resume import restore_, resume_, save
from runs import CPU, assert_same_model, losses, small_run

pytestmark = pytest.mark.usefixtures("tiny_y1")
CONSTANT = ScheduleConfig(kind="step")


def config_of(steps: int = 4, **optim: Any) -> Config:
    values: dict[str, Any] = {"lr": 0.02, "schedule": CONSTANT} | optim
    accumulate = values.pop("accumulate", 1)
    return small_run(
        backbone=BackboneConfig(name="y1"),
        head=HeadConfig(lr_factor=0.0),
        optim=OptimConfig(**values),
        train=TrainConfig(batch_size=4, steps=steps, precision="float64", accumulate=accumulate),
        checkpoint=CheckpointConfig(every=2),
    )


def weights(state: TrainState) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in state.backbone.named_parameters()}


def moved(steps: int, first: int, **optim: Any) -> dict[str, Tensor]:
    """How far `steps` steps from the start values move the weights, from batch `first` on."""
    state = build(config_of(momentum=0.0, weight_decay=0.0, **optim), CPU)
    state.step, state.position = first, 4 * first
    before = weights(state)
    losses(state, steps)
    return {name: value - before[name] for name, value in weights(state).items()}


@pytest.mark.parametrize("batches", [2, 3])
def test_the_gradients_of_several_batches_are_averaged(batches: int) -> None:
    together = moved(batches, 0, accumulate=batches)
    alone = [moved(1, first) for first in range(batches)]
    for name, one in together.items():
        mean = sum(other[name] for other in alone) / batches
        torch.testing.assert_close(one, mean, rtol=0, atol=1e-12, msg=name)
    unmoved = moved(batches - 1, 0, accumulate=batches)
    assert all(not way.any() for way in unmoved.values())


def test_a_skipped_batch_leaves_the_others_of_its_update() -> None:
    config = config_of(momentum=0.0, weight_decay=0.0, accumulate=2)
    state = build(replace(config, train=replace(config.train, nonfinite="skip")), CPU)
    before = weights(state)
    losses(state, 1)
    spoilt = state.model.register_forward_hook(lambda *args: args[-1] * torch.nan)
    losses(state, 1)
    spoilt.remove()
    assert (state.step, state.skipped, state.kept.gradients) == (2, 1, {})
    alone, now = moved(1, 0), weights(state)
    for name, way in alone.items():
        torch.testing.assert_close(now[name] - before[name], way / 2, rtol=0, atol=1e-12, msg=name)


def steps_of_a_rank(rank: int) -> dict[str, Tensor]:
    state = build(config_of(accumulate=2, ema=0.5), CPU)
    losses(state, 4)
    return state.kept.tensors(state.world)


def test_all_ranks_have_the_same_average(run_ranks: RunRanks) -> None:
    one, other = run_ranks(steps_of_a_rank, 2)
    assert len(one) > 5
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def test_the_average_follows_the_weights() -> None:
    layer = torch.nn.BatchNorm1d(3)
    kept = Kept(layer, 0.75)
    for weight in (1.0, 5.0, 5.0):
        with torch.no_grad():
            layer.weight.fill_(weight)
        layer.running_mean.fill_(weight)  # type: ignore[union-attr]
        kept.update_average_()
    with kept.averaged(Group()):
        assert layer.weight[0] == layer.running_mean[0] == 2.75  # type: ignore[index]
    assert layer.weight[0] == layer.running_mean[0] == 5.0  # type: ignore[index]


def test_an_overflow_leaves_the_average_as_it_was() -> None:
    config = small_run(
        optim=OptimConfig(lr=0.02, ema=0.5),
        train=TrainConfig(batch_size=4, steps=3, precision="fp16"),
    )
    state = build(config, CPU)
    losses(state, 1)
    begun = {name: value.clone() for name, value in state.kept.average.items()}
    state.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    losses(state, 1)
    assert state.scaler.get_scale() == 2.0**126
    assert all(torch.equal(value, begun[name]) for name, value in state.kept.average.items())
    state.scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
    losses(state, 1)
    assert state.scaler.get_scale() == 1.0  # no overflow
    now = dict(state.backbone.named_parameters()) | dict(state.backbone.named_buffers())
    for name, value in state.kept.average.items():
        torch.testing.assert_close(value, (begun[name] + now[name]) / 2)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_resumed_run_equals_one_that_never_stopped(tmp_path: Path, accumulate: int) -> None:
    optim: dict[str, Any] = {"ema": 0.5, "groups": ["conv.*=0.5"], "accumulate": accumulate}
    train(config_of(6, **optim), tmp_path / "straight")
    for steps in (2, 4, 6):
        train(config_of(steps, **optim), tmp_path / "stopped", resume=True)
    assert_same_model(tmp_path / "straight", tmp_path / "stopped")


def test_the_average_is_what_is_saved_and_unpacked(tmp_path: Path) -> None:
    train(config_of(3, ema=0.9), tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    path = checkpoint.checkpoints(tmp_path / "checkpoints")[-1]
    state = unpack.load_backbone(path).state_dict()
    raw = load_file(path / "rank-00000.safetensors")
    assert all(torch.equal(saved[name].to(value.dtype), value) for name, value in state.items())
    assert any(not torch.equal(saved[name], raw[f"backbone/{name}"]) for name in saved)


@pytest.mark.parametrize("held", [True, False])
def test_frozen_layers_stay_with_their_statistics_or_without(held: bool) -> None:
    groups = ["conv.*=0", "bn.*=0", "act.*=0.5"]
    state = build(config_of(groups=groups, frozen_statistics=held), CPU)
    before = {name: value.clone() for name, value in state.backbone.state_dict().items()}
    losses(state, 2)
    changed = {
        name for name, value in state.backbone.state_dict().items()
        if not torch.equal(value, before[name])
    }  # fmt: skip
    assert not {"conv.weight", "bn.weight", "bn.bias"} & changed
    assert ("bn.running_mean" in changed) is not held
    assert "act.weight" in changed
    assert {group["factor"]: group["lr"] for group in state.optimizer.param_groups} == {
        1.0: 0.02,
        0.5: 0.01,
    }


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (["conv.*"], r"optim.groups has 'conv.\*'; write PATTERN=FACTOR"),
        (["conv.*=-1"], "factor of 0 or more"),
        (["nosuch.*=0"], r"optim.groups: 'nosuch.\*' matches no parameter; they are called conv"),
        (["*=0"], "freezes all of the backbone"),
    ],
)
def test_groups_that_do_not_fit_are_refused(groups: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(config_of(groups=groups), CPU)


def test_graphs_and_frozen_statistics_are_refused_together() -> None:
    config = config_of(groups=["bn.*=0"])
    with pytest.raises(ValueError, match=r"leave out train.graphs, or set optim.frozen_statistics"):
        build(replace(config, train=replace(config.train, graphs=True)), CPU)


def fp16(config: Config, **train: Any) -> Config:
    return replace(config, train=replace(config.train, **{"precision": "fp16"} | train))


def saved_between_updates(folder: Path) -> tuple[TrainState, Path]:
    """A run in fp16 after the first of two batches, and its checkpoint."""
    state = build(fp16(config_of(accumulate=2)), CPU)
    losses(state, 1)
    assert state.kept.gradients
    save(state, folder)
    return state, checkpoint.checkpoints(folder / "checkpoints")[-1]


@pytest.mark.parametrize("changes", [{}, {"accumulate": 1}, {"precision": "bf16"}], ids=str)
def test_sums_of_gradients_are_taken_over_where_they_mean_the_same(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    state, path = saved_between_updates(tmp_path)
    again = build(fp16(config_of(accumulate=2), **changes), CPU)
    restore_(again, path)
    assert again.kept.gradients.keys() == (set() if changes else state.kept.gradients.keys())


def test_sums_that_overflow_do_not_spoil_a_checkpoint(tmp_path: Path) -> None:
    state, _ = saved_between_updates(tmp_path)
    next(iter(state.kept.gradients.values())).fill_(torch.inf)
    save(state, tmp_path)
    assert resume_(build(state.config, CPU), tmp_path) == []


def test_the_log_has_the_rate_of_every_step(tmp_path: Path) -> None:
    falling = ScheduleConfig(kind="linear")
    train(config_of(4, schedule=falling, groups=["*=0.5"], accumulate=3), tmp_path)
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [row["lr"] for row in rows] == pytest.approx([0.02, 0.015, 0.01, 0.005])


def test_a_layer_that_was_frozen_learns_again_with_a_fused_optimizer(tmp_path: Path) -> None:
    first = build(config_of(groups=["conv.*=0", "bn.*=0"]), CPU)
    losses(first, 2)
    save(first, tmp_path)
    ends = []
    for fused in (True, False):
        state = build(config_of(fused=fused), CPU)
        resume_(state, tmp_path)
        losses(state, 2)
        ends.append(weights(state))
    torch.testing.assert_close(*ends, rtol=0, atol=1e-12)
    assert not torch.equal(ends[0]["conv.weight"], weights(first)["conv.weight"])


def test_a_norm_without_parameters_is_not_frozen() -> None:
    norms = torch.nn.Sequential(torch.nn.BatchNorm2d(3, affine=False), torch.nn.BatchNorm2d(3))
    norms[1].requires_grad_(False)
    hold_statistics_(norms.train())
    assert [norm.training for norm in norms] == [True, False]


def test_an_average_of_other_layers_is_refused(tmp_path: Path) -> None:
    state = build(config_of(ema=0.5, groups=["conv.*=0"]), CPU)
    losses(state, 1)
    save(state, tmp_path)
    message = r"step-00000001: its average .* conv.weight for example; keep optim.groups"
    with pytest.raises(ValueError, match=message):
        resume_(build(config_of(ema=0.5), CPU), tmp_path)
