"""Runs of arcface_torch go on here, and its tools read the weights that a run leaves."""

from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import RunRanks
from facescale import backbones
from facescale.config import (
    BackboneConfig,
    CheckpointConfig,
    Config,
    DataConfig,
    OptimConfig,
    StartConfig,
    TrainConfig,
)
from facescale.training import build, train
from facescale.training.start import begin_from_
from runs import CPU, small_run

pytestmark = pytest.mark.usefixtures("tiny_y1")
CLASSES, DIM, STEP = 50, 16, 5


def write_theirs(folder: Path, ranks: int, **changes: Any) -> tuple[dict[str, Tensor], Tensor]:
    """Files in arcface_torch's layout; the backbone's weights and all class centres."""
    random = torch.Generator().manual_seed(1)
    backbone = backbones.build("y1", DIM, family="arcface_torch", generator=random).state_dict()
    centres = torch.randn(CLASSES, DIM, generator=random)
    first = 0
    for rank in range(ranks):
        size = CLASSES // ranks + (rank < CLASSES % ranks)
        parameter = torch.nn.Parameter(centres[first : first + size].clone())
        optimizer = torch.optim.SGD([parameter], lr=0.1, momentum=0.9)
        parameter.sum().backward()
        optimizer.step()
        checkpoint = {
            "epoch": 0,
            "global_step": STEP,
            "state_dict_backbone": OrderedDict(backbone),
            "state_dict_softmax_fc": OrderedDict(weight=centres[first : first + size]),
            "state_optimizer": optimizer.state_dict(),
            "state_lr_scheduler": {"last_epoch": STEP, "base_lrs": [0.1]},
        }
        torch.save(checkpoint | changes, folder / f"checkpoint_gpu_{rank}.pt")
        first += size
    return backbone, centres


def config_of(folder: Path, **changes: Any) -> Config:
    values = {
        "backbone": BackboneConfig(name="y1", embedding_dim=DIM, family="arcface_torch"),
        "train": TrainConfig(batch_size=4, steps=7),
        "start": StartConfig(checkpoint=str(folder)),
        "checkpoint": CheckpointConfig(model_pt=True),
    }
    return small_run(**(values | changes))


def begin(rank: int, folder: Path) -> tuple[int, int, dict[str, Tensor], Tensor]:
    state = build(config_of(folder), CPU)
    begin_from_(state, state.config.start)
    weights = state.backbone.state_dict()
    return state.step, state.position // state.global_batch, weights, state.head.centres.full()


@pytest.mark.parametrize(("writers", "readers"), [(1, 1), (3, 1), (3, 2)])
def test_backbone_centres_and_step_are_taken_over(
    run_ranks: RunRanks, tmp_path: Path, writers: int, readers: int
) -> None:
    backbone, centres = write_theirs(tmp_path, writers)
    for step, batches, weights, full in run_ranks(begin, readers, tmp_path):
        assert step == batches == STEP
        assert torch.equal(full, centres)
        assert all(torch.equal(weights[name], value) for name, value in backbone.items())


def test_the_run_goes_on_and_leaves_a_model_for_them(tmp_path: Path) -> None:
    write_theirs(tmp_path, 2)
    summary = train(config_of(tmp_path), tmp_path / "run")
    assert summary.steps == 2
    weights = torch.load(tmp_path / "run" / "model.pt", weights_only=True)
    network = backbones.build("y1", DIM, family="arcface_torch")
    network.load_state_dict(weights)
    assert all(value.device.type == "cpu" for value in weights.values())


def test_a_resume_does_not_begin_anew_beside_their_checkpoints(tmp_path: Path) -> None:
    write_theirs(tmp_path, 2)
    config = config_of(tmp_path)
    with pytest.raises(ValueError, match=r"continue that run with --start\.checkpoint"):
        train(replace(config, start=StartConfig()), tmp_path, resume=True)
    assert train(config, tmp_path, resume=True).steps == 2
    assert train(replace(config, start=StartConfig()), tmp_path, resume=True).steps == 0


@pytest.mark.parametrize(("family", "lines"), [("mxnet", 1), ("arcface_torch", 0)])
def test_a_model_that_they_would_take_for_theirs_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], family: Any, lines: int
) -> None:
    backbone = BackboneConfig(name="y1", embedding_dim=DIM, family=family)
    train(config_of(tmp_path, backbone=backbone, start=StartConfig()), tmp_path / "run")
    assert capsys.readouterr().out.count(f"this backbone is of family {family}") == lines


class Trap:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("run",)


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"state_dict_softmax_fc": {}}, {}, "is not a checkpoint of arcface_torch: no 'weight'"),
        ({"global_step": "5"}, {}, "is not a checkpoint of arcface_torch"),
        ({"global_step": 9}, {}, "has finished 9 steps, and this run has 7; raise train.epochs"),
        ({"epoch": Trap()}, {}, "which could run code"),
        (
            {"state_dict_softmax_fc": {"weight": torch.full((25, DIM), torch.nan)}},
            {},
            "class centres that are not finite",
        ),
        (
            {"state_dict_softmax_fc": {"weight": torch.ones(1, 1).expand(1 << 40, DIM)}},
            {},
            "is not a checkpoint of arcface_torch",
        ),
        ({}, {"backbone": BackboneConfig(name="y1", embedding_dim=DIM)}, "set backbone.family"),
        (
            {},
            {"data": DataConfig(path="synthetic", num_classes=49, num_images=64, threads=1)},
            "has 50 classes in all files, but the data has 49",
        ),
    ],
)
def test_what_does_not_fit_is_refused(
    tmp_path: Path, changes: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    write_theirs(tmp_path, 2, **changes)
    state = build(config_of(tmp_path, **options), CPU)
    with pytest.raises(ValueError, match=message):
        begin_from_(state, state.config.start)


@pytest.mark.parametrize(
    ("batch", "images", "step", "num_steps", "position"),
    [
        (8, 64, 16, 32, 128),  # as there
        (8, 71, 16, 36, 128),  # it left out 7 images of each epoch
        (4, 64, 16, 48, 128),  # half of it: the images that are left are 32 steps
        (32, 64, 16, 20, 128),
    ],
)
def test_another_global_batch_continues_in_the_same_epoch(
    tmp_path: Path, batch: int, images: int, step: int, num_steps: int, position: int
) -> None:
    """Two of four epochs at batch 8; the rate is half of the peak rate."""
    write_theirs(tmp_path, 2, global_step=step, epoch=2)
    config = config_of(
        tmp_path,
        data=DataConfig(path="synthetic", num_classes=CLASSES, num_images=images, threads=1),
        train=TrainConfig(batch_size=batch, epochs=4),
        optim=OptimConfig(lr=0.1),
    )
    state = build(config, CPU)
    said = begin_from_(state, state.config.start)[0]
    assert (state.step, state.num_steps, state.position) == (step, num_steps, position)
    assert state.rate(step) == pytest.approx(0.05, rel=0.2 if images == 71 else 1e-6)
    assert ("epoch 2; its steps had another global batch" in said) == (batch != 8)


def test_files_of_two_saves_are_refused(tmp_path: Path) -> None:
    """A job that ended while the ranks saved, or files of an older run on more GPUs."""
    write_theirs(tmp_path, 2, global_step=3)
    older = (tmp_path / "checkpoint_gpu_1.pt").rename(tmp_path / "older")
    write_theirs(tmp_path, 2)
    older.rename(tmp_path / "checkpoint_gpu_1.pt")
    state = build(config_of(tmp_path), CPU)
    message = r"checkpoint_gpu_1.pt has finished 3 steps, but checkpoint_gpu_0.pt 5"
    with pytest.raises(ValueError, match=message):
        begin_from_(state, state.config.start)


def test_one_of_the_files_is_not_taken_for_all(tmp_path: Path) -> None:
    write_theirs(tmp_path, 2)
    state = build(config_of(tmp_path / "checkpoint_gpu_0.pt"), CPU)
    with pytest.raises(ValueError, match="has a part of the class centres; give the folder"):
        begin_from_(state, state.config.start)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    write_theirs(tmp_path, 3)
    (tmp_path / "checkpoint_gpu_1.pt").unlink()
    state = build(config_of(tmp_path), CPU)
    with pytest.raises(ValueError, match=r"has 2 checkpoint_gpu_\*.pt, but no checkpoint_gpu_1"):
        begin_from_(state, state.config.start)
