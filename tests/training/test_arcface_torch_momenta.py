"""A run that arcface_torch began goes on as it would have there, momenta included."""

import copy
import re
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from conftest import RunRanks
from facescale.checkpoint import folder as checkpoint
from facescale.checkpoint import tensors
from facescale.config import (
    BackboneConfig,
    Config,
    DataConfig,
    HeadConfig,
    MarginConfig,
    OptimConfig,
    ScheduleConfig,
    StartConfig,
    TrainConfig,
    arcface_torch,
)
from facescale.random import derive_seed
from facescale.training import build, train
from facescale.training.start import begin_from_
from facescale.training.state import AUGMENT
from plain_loop import Learner, Settings, make_learner
from runs import CPU, small_run

pytestmark = pytest.mark.usefixtures("short_networks")
CLASSES, BATCH, BEFORE, AFTER = 50, 8, 4, 3
SGD = Settings("r18_half", image_size=28, embedding_size=16, batch_size=BATCH, lr=0.01)
ADAMW = replace(SGD, optimizer="adamw", lr=1e-3)


def begun(settings: Settings, dtype: torch.dtype = torch.float64) -> Learner:
    """Their run after `BEFORE` steps; in float64 a small error is not one of rounding."""
    return copy.deepcopy(_begun(settings, dtype))


@lru_cache
def _begun(settings: Settings, dtype: torch.dtype) -> Learner:
    random = torch.Generator().manual_seed(1)
    with torch.random.fork_rng():
        learner = make_learner(CLASSES, settings, CPU, random)
        learner.backbone.to(dtype)
        learner.centres.data = learner.centres.data.to(dtype)
        for _ in range(BEFORE):
            images = torch.randint(0, 256, (BATCH, 3, 112, 112), generator=random)
            labels = torch.randint(0, CLASSES, (BATCH,), generator=random)
            learner.step(images.to(dtype), labels)
    return learner


Change = Callable[[dict[str, Any]], object]


def write_theirs(folder: Path, learner: Learner, ranks: int, change: Change = lambda _: 0) -> None:
    """What `save_all_states` writes on so many GPUs: the shards' optimizers have parts of one."""
    state, first = learner.optimizer.state_dict(), 0
    (number,) = state["param_groups"][1]["params"]
    for rank in range(ranks):
        stop = first + CLASSES // ranks + (rank < CLASSES % ranks)
        own = {
            key: value[first:stop].clone() if value.ndim else value
            for key, value in state["state"][number].items()
        }
        saved = {
            "epoch": 1,
            "global_step": BEFORE,
            "state_dict_backbone": learner.backbone.state_dict(),
            "state_dict_softmax_fc": {"weight": learner.centres.detach()[first:stop].clone()},
            "state_optimizer": state | {"state": state["state"] | {number: own}},
            "state_lr_scheduler": {"last_epoch": BEFORE, "base_lrs": [0.1]},
        }
        change(saved)
        torch.save(saved, folder / f"checkpoint_gpu_{rank}.pt")
        first = stop


def train_config(**options: Any) -> TrainConfig:
    defaults: dict[str, Any] = {
        "global_batch_size": BATCH,
        "steps": BEFORE + AFTER,
        "precision": "float64",
    }
    return TrainConfig(**(defaults | options))


def config_of(folder: Path, settings: Settings, **changes: Any) -> Config:
    """The same run as `settings`, at a rate that stays."""
    name = settings.optimizer
    schedule = ScheduleConfig(kind="step")
    sections: dict[str, Any] = {
        "data": DataConfig(
            path="synthetic", num_classes=CLASSES, num_images=BEFORE * BATCH, threads=1
        ),
        "backbone": BackboneConfig(
            name=settings.network,
            embedding_dim=settings.embedding_size,
            family="arcface_torch",
            image_size=settings.image_size,
        ),
        "head": HeadConfig(margin=MarginConfig(gradient="straight-through")),
        "optim": OptimConfig(
            name=name, head_name=name, lr=settings.lr, clip_norm=5.0, schedule=schedule
        ),
        "train": train_config(sync_batchnorm=True),
        "start": StartConfig(checkpoint=str(folder)),
    }
    return small_run(**(sections | changes))


def go_on(learner: Learner, config: Config) -> None:
    """Their run to its end, with the batches that `config` has from its checkpoint on."""
    state = build(config, CPU)
    begin_from_(state, config.start)
    with state.loader() as loader:
        for _ in range(AFTER):
            batch = next(loader)
            seed = derive_seed(config.seed, AUGMENT)
            images = state.augment(batch.images, seed=seed, position=batch.position)
            learner.step(images.to(learner.centres.dtype), batch.labels)


def train_ours(rank: int, config: Config, output: Path) -> None:
    train(config, output)


def weights_of(output: Path) -> tuple[dict[str, Tensor], Tensor]:
    path = checkpoint.checkpoints(output / "checkpoints")[-1]
    stored = load_file(path / tensors.file_name(0))  # in float64; model.safetensors is float32
    backbone = {name.removeprefix("backbone/"): value for name, value in stored.items()}
    return backbone, tensors.read_centres(path, range(CLASSES))[:, 0]


@torch.no_grad()
def distances(learner: Learner, start: Learner, output: Path) -> tuple[float, float]:
    """How far ours ended from theirs, as a share of theirs' way since the checkpoint."""
    backbone, centres = weights_of(output)
    theirs, before = (dict(one.backbone.named_parameters()) for one in (learner, start))
    apart = torch.cat([(backbone[name] - theirs[name]).flatten() for name in theirs]).norm()
    way = torch.cat([(before[name] - theirs[name]).flatten() for name in theirs]).norm()
    centres_apart = (centres - learner.centres).norm() / (start.centres - learner.centres).norm()
    return float(apart / way), float(centres_apart)


@pytest.mark.parametrize(
    ("settings", "writers", "readers", "precision", "limit"),
    [
        (SGD, 1, 1, "float64", 1e-9),
        (SGD, 3, 2, "float64", 1e-9),
        (ADAMW, 2, 2, "float64", 1e-5),  # whole steps of gradients that are rounding: fc.bias
        (SGD, 2, 1, "float32", 1e-3),
    ],
)
def test_the_run_goes_on_as_there(
    run_ranks: RunRanks,
    tmp_path: Path,
    settings: Settings,
    writers: int,
    readers: int,
    precision: str,
    limit: float,
) -> None:
    learner, start = (begun(settings, getattr(torch, precision)) for _ in range(2))
    write_theirs(tmp_path, learner, writers)
    train = train_config(precision=precision, sync_batchnorm=True)
    config = config_of(tmp_path, settings, train=train)
    go_on(learner, config)
    run_ranks(train_ours, readers, config, tmp_path / "run")
    assert max(distances(learner, start, tmp_path / "run")) < limit


@pytest.mark.parametrize("settings", [SGD, ADAMW], ids=lambda one: one.optimizer)
def test_without_momenta_it_goes_on_elsewhere_and_says_so(
    tmp_path: Path, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    learner, start = begun(settings), begun(settings)
    write_theirs(tmp_path, learner, 2, lambda saved: saved.pop("state_optimizer"))
    config = config_of(tmp_path, settings)
    go_on(learner, config)
    train(config, tmp_path / "run")
    assert min(distances(learner, start, tmp_path / "run")) > 0.1
    said = [line for line in capsys.readouterr().out.splitlines() if "begin anew" in line]
    assert len(said) == 2


@pytest.mark.parametrize("settings", [SGD, ADAMW], ids=lambda one: one.optimizer)
def test_gradients_of_several_batches_as_the_imported_config_has_them(
    tmp_path: Path, settings: Settings
) -> None:
    """Of the backbone, beside class centres that stay: they learn in every batch here."""
    settings = replace(settings, gradient_acc=2)
    text = f"config.optimizer = {settings.optimizer!r}\nconfig.lr = {settings.lr}\n"
    (tmp_path / "theirs.py").write_text(f"{text}config.gradient_acc = 2\n")
    options = arcface_torch.read(tmp_path / "theirs.py", gpus=1).options
    learner, start = begun(settings), begun(settings)
    write_theirs(tmp_path, learner, 1)
    config = config_of(
        tmp_path,
        settings,
        head=HeadConfig(margin=MarginConfig(gradient="straight-through"), lr_factor=0.0),
        optim=OptimConfig(
            name=settings.optimizer,
            head_name=settings.optimizer,
            lr=options["optim.lr"],
            weight_decay=options["optim.weight_decay"],
            clip_norm=options["optim.clip_norm"],
            schedule=ScheduleConfig(kind="step"),
        ),
        train=train_config(accumulate=options["train.accumulate"]),
    )
    learner.centres.requires_grad_(False)
    go_on(learner, config)
    train(config, tmp_path / "run")
    apart, _ = distances(learner, start, tmp_path / "run")
    # AdamW's eps stands beside a sum of gradients there and beside their mean here
    assert apart < (1e-9 if settings.optimizer == "sgd" else 1e-3)


def test_nothing_is_said_of_momenta_that_are_taken_over(tmp_path: Path) -> None:
    write_theirs(tmp_path, begun(SGD), 2)
    state = build(config_of(tmp_path, SGD), CPU)
    notes = begin_from_(state, state.config.start)
    assert notes == [f"{tmp_path}: a run of arcface_torch, continued at step {BEFORE}"]


def test_sums_of_gradients_become_means(tmp_path: Path) -> None:
    """`gradient_acc` adds gradients up, `train.accumulate` takes their mean."""
    for settings, powers in (
        (SGD, {"momentum_buffer": 1}),
        (ADAMW, {"exp_avg": 1, "exp_avg_sq": 2}),
    ):
        learner = begun(settings)
        write_theirs(tmp_path, learner, 1)
        state = build(config_of(tmp_path, settings, train=train_config(accumulate=4)), CPU)
        begin_from_(state, state.config.start)
        theirs, ours = learner.optimizer.state, state.optimizer.state
        for mine, other in zip(
            state.backbone.parameters(), learner.backbone.parameters(), strict=True
        ):
            for key, power in powers.items() if other.requires_grad else ():
                torch.testing.assert_close(ours[mine][key], theirs[other][key] / 4**power)
        rows = state.head.centres.table[:, 1:].unbind(1)
        for row, (key, power) in zip(rows, powers.items(), strict=True):
            torch.testing.assert_close(row, theirs[learner.centres][key] / 4**power)


def test_frozen_layers_and_a_head_without_momentum_take_none(tmp_path: Path) -> None:
    learner = begun(SGD)
    write_theirs(tmp_path, learner, 1)
    optim = OptimConfig(groups=["layer1.*=0", "conv1.*=0.1"], clip_norm=5.0)
    head = HeadConfig(momentum=0.0)
    state = build(config_of(tmp_path, SGD, optim=optim, head=head), CPU)
    assert len(begin_from_(state, state.config.start)) == 1
    theirs = {name: learner.optimizer.state[p] for name, p in learner.backbone.named_parameters()}
    for name, parameter in state.backbone.named_parameters():
        if parameter.requires_grad:
            kept = state.optimizer.state[parameter]["momentum_buffer"]
            assert torch.equal(kept, theirs[name]["momentum_buffer"]), name
        else:
            assert parameter not in state.optimizer.state


def of(saved: dict[str, Any], number: int) -> dict[str, Any]:
    """What their optimizer keeps for one parameter; -1: for the class centres."""
    state: dict[int, dict[str, Any]] = saved["state_optimizer"]["state"]
    return state[max(state) if number < 0 else number]


def repeated(saved: dict[str, Any], number: int) -> None:
    kept = of(saved, number)
    kept["momentum_buffer"] = torch.ones(()).expand(kept["momentum_buffer"].shape)


MISFITS: list[tuple[Change, list[str]]] = [
    (lambda saved: saved.update(state_optimizer=torch.ones(2)), ["no state of an", "no state of"]),
    (lambda saved: saved["state_optimizer"]["state"].clear(), ["file has none", "file has none"]),
    (lambda saved: saved["state_optimizer"]["param_groups"].pop(), ["no state of an optimizer"]),
    (
        lambda saved: saved["state_optimizer"]["param_groups"][0]["params"].pop(),
        ["parameters, the"],
    ),
    (lambda saved: saved["state_optimizer"]["state"].pop(0), ["for conv1.weight .1 in all."]),
    (lambda saved: of(saved, 0).update(momentum_buffer=None), ["for conv1.weight .1 in all."]),
    (lambda saved: of(saved, 0).update(momentum_buffer=torch.ones(3)), [r"has shape \[3\]"]),
    (lambda saved: of(saved, 0)["momentum_buffer"].fill_(torch.inf), ["not finite"]),
    (lambda saved: repeated(saved, 0), ["not a plain tensor"]),
    (lambda saved: repeated(saved, -1), ["class centres .* not a plain tensor"]),
    (lambda saved: of(saved, -1).update(momentum_buffer="x"), ["class centres .* not a plain"]),
    (
        lambda saved: of(saved, -1).update(momentum_buffer=torch.ones(2, 16)),
        [r"class centres .* shape \[2, 16\], the weight \[25, 16\]"],
    ),
]


@pytest.mark.parametrize(("change", "said"), MISFITS)
def test_what_does_not_fit_begins_anew_in_one_line(
    tmp_path: Path, change: Change, said: list[str]
) -> None:
    write_theirs(tmp_path, begun(SGD), 2, change)
    state = build(config_of(tmp_path, SGD), CPU)
    _, *notes = begin_from_(state, state.config.start)
    assert len(notes) == len(said)
    for note, expected in zip(notes, said, strict=True):
        assert re.search(expected, note), note
    assert state.step == BEFORE
    for parameter in state.backbone.parameters():
        if parameter.requires_grad and len(said) == 2:
            assert not state.optimizer.state[parameter].get("momentum_buffer", torch.zeros(1)).any()


@pytest.mark.parametrize(("theirs", "ours"), [(SGD, "adamw"), (ADAMW, "sgd")])
def test_another_kind_of_optimizer_begins_anew(tmp_path: Path, theirs: Settings, ours: Any) -> None:
    learner = begun(theirs)
    write_theirs(tmp_path, learner, 2)
    state = build(config_of(tmp_path, theirs, optim=OptimConfig(name=ours, head_name=ours)), CPU)
    _, backbone, centres = begin_from_(state, state.config.start)
    assert "of the backbone begin anew: its optimizer keeps" in backbone
    assert "of the class centres begin anew: its optimizer keeps" in centres
    assert not state.head.centres.table[:, 1:].any()
    assert not state.head.centres.counts.any()
    assert torch.equal(state.head.centres.full(), learner.centres.detach())
