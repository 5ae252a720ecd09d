"""A step that the host queues without a wait: what was wrong with it is found one step later.

Triton's interpreter runs the head's kernels on the CPU.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import pytest
import torch
from torch import Tensor

from conftest import ranks_in, tiny_builder
from facescale.backbones import registry
from facescale.config import (
    BackboneConfig,
    Config,
    DataConfig,
    HeadConfig,
    OptimConfig,
    TrainConfig,
)
from facescale.data.loader import Batch
from facescale.head import checks
from facescale.head.late import LateNumbers
from facescale.kernels import cuda
from facescale.training import TrainState, build, step, train_step
from facescale.training.finite import settle
from facescale.training.resume import resume_, save
from host_reads import HostReads
from late_aside import LateAside, late_asides
from triton_process import compiled, interpreted, needs_triton

pytestmark = needs_triton

Name = Literal["sgd", "adamw"]


def make_state(
    fused: bool = True,
    nonfinite: Any = "stop",
    name: Name = "sgd",
    device: str = "cpu",
    global_batch: int | None = None,
    shards: int | None = None,
    precision: Any = "float32",
) -> TrainState:
    config = Config(
        data=DataConfig(path="synthetic", num_classes=40, num_images=64, threads=1),
        backbone=BackboneConfig(name="y1", embedding_dim=16),
        head=HeadConfig(sample_rate=0.5, shards=shards),
        optim=OptimConfig(name=name, lr=0.02, clip_norm=5.0, fused=fused, ema=0.5),
        train=TrainConfig(
            batch_size=4,
            global_batch_size=global_batch,
            steps=8,
            nonfinite=nonfinite,
            precision=precision,
        ),
    )
    with mock.patch.dict(registry._BUILDERS, y1=tiny_builder()):
        return build(config, torch.device(device))


def first_batches(state: TrainState, count: int) -> list[Batch]:
    with state.loader() as loader:
        return [next(loader) for _ in range(count)]


def weights(state: TrainState, head: bool = True) -> dict[str, Tensor]:
    state.head.centres.start_()
    tensors = {name: t.clone() for name, t in state.backbone.state_dict().items()}
    tensors |= {"centres": state.head.centres.table.clone()} if head else {}
    return {name: t for name, t in tensors.items() if "num_batches" not in name}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@contextmanager
def broken(state: TrainState, what: str) -> Iterator[None]:
    """A step whose loss or gradient is not finite."""

    def hook(module: Any, args: Any, embeddings: Tensor) -> Tensor:
        if what == "loss":
            for norm in (m for m in module.modules() if isinstance(m, torch.nn.BatchNorm2d)):
                assert norm.running_mean is not None
                norm.running_mean.fill_(torch.nan)  # as an overflow in the trunk would
            return embeddings * torch.nan
        embeddings.register_hook(lambda gradient: gradient * torch.inf)
        return embeddings

    handle = state.model.register_forward_hook(hook)
    yield
    handle.remove()


def late_is_as_early(name: Name) -> None:
    answers = []
    for fused in (True, False):
        state = make_state(fused, name=name)
        assert state.asks_late == fused
        losses = [train_step(state, batch).item() for batch in first_batches(state, 3)]
        settle(state)
        answers.append((losses, weights(state)))
    (losses, late), (others, early) = answers
    assert losses == pytest.approx(others, rel=1e-5)
    if name == "sgd":  # Adam divides rounding by itself where a gradient is zero but for it
        torch.testing.assert_close(late, early, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_what_is_checked_late_learns_what_is_checked_at_once(name: str) -> None:
    interpreted(late_is_as_early, name)


def bad_step(what: str, at: int, name: Name) -> None:
    state = make_state(name=name)
    batches = first_batches(state, 4)
    for batch in batches[:at]:
        train_step(state, batch)
    before, backbone_before = weights(state), weights(state, head=False)
    average = {name: value.clone() for name, value in state.kept.average.items()}
    with broken(state, what):
        train_step(state, batches[at])  # says nothing yet
    assert same(average, state.kept.average)
    if what == "loss":
        assert same(before, weights(state))
    else:
        now = weights(state, head=False)
        parameters = dict(state.backbone.named_parameters())
        assert same({n: t for n, t in backbone_before.items() if n in parameters}, now)
        assert not torch.equal(before["centres"], state.head.centres.table)
    left, drawn = weights(state), state.head.num_steps
    message = f"step {at}: the {what} is not finite.*was (changed by|not changed)"
    with pytest.raises(FloatingPointError, match=message):
        train_step(state, batches[at + 1])
    assert same(left, weights(state))
    assert state.head.num_steps == drawn
    settle(state)  # said once
    losses = [train_step(state, batch).item() for batch in batches[at + 1 :]]
    assert torch.tensor(losses).isfinite().all()
    settle(state)
    assert all(t.isfinite().all() for t in weights(state).values())


@pytest.mark.parametrize(
    ("what", "at", "name"),
    [("loss", 0, "sgd"), ("loss", 1, "sgd"), ("gradient", 1, "sgd"), ("loss", 1, "adamw")],
)
def test_a_bad_step_changes_nothing_and_is_named_by_the_next(what: str, at: int, name: str) -> None:
    interpreted(bad_step, what, at, name)


def skipped() -> None:
    state = make_state(nonfinite="skip")
    batches = first_batches(state, 3)
    train_step(state, batches[0])
    with broken(state, "loss"):
        train_step(state, batches[1])
    assert (state.step, state.skipped) == (2, 0)
    train_step(state, batches[2])
    assert state.skipped == 1
    with broken(state, "gradient"):
        train_step(state, batches[2])
    settle(state)
    assert (state.step, state.skipped) == (4, 2)


def test_a_bad_step_is_counted_where_it_is_to_be_skipped() -> None:
    interpreted(skipped)


def bad_loss_in_fp16() -> None:
    state = make_state(precision="fp16")
    assert state.head.defers
    first, second, third = first_batches(state, 3)
    train_step(state, first)
    before = weights(state)
    norm = next(m for m in state.model.modules() if isinstance(m, torch.nn.BatchNorm2d))
    overflow = norm.register_forward_pre_hook(lambda _, images: (images[0] * torch.inf,))
    train_step(state, second)  # says nothing yet
    overflow.remove()
    assert same(before, weights(state))
    with pytest.raises(FloatingPointError, match="step 1: the loss is not finite"):
        train_step(state, third)
    assert same(before, weights(state))


def test_a_loss_that_is_not_finite_in_fp16_is_named_by_the_next_step() -> None:
    interpreted(bad_loss_in_fp16)


def host_reads(fused: bool) -> dict[str, int]:
    """Host reads of the second step."""
    state = make_state(fused)
    first, second = first_batches(state, 2)
    train_step(state, first)
    with HostReads() as spy:
        train_step(state, second)
    return dict(spy.found)


def test_a_step_reads_nothing_from_the_device() -> None:
    found = interpreted(host_reads, True)
    # The augmentation chooses on the host, from numbers that are there.
    assert {place for place in found if not place.startswith("data/")} == set()
    assert sum(interpreted(host_reads, False).values()) > sum(found.values())


def tensors_of(state: TrainState) -> dict[str, Tensor]:
    return {name: t.clone() for name, t in state.head.state_dict().items()}


def late_and_early(folder: Path) -> None:
    left = []
    for late in (True, False):
        with late_asides() if late else nullcontext():
            state = make_state(nonfinite="skip")
            other = make_state(nonfinite="skip")
        assert isinstance(state.head.centres.aside, LateAside) == late
        batches, losses = first_batches(state, 5), []
        for place, batch in enumerate(batches[:4]):
            with broken(state, "loss") if place == 1 else nullcontext():
                losses.append(train_step(state, batch).nan_to_num())
        if late:  # the backbone's norms, clipping and update do not wait
            assert state.head.centres.aside.order[-1] == "run"  # type: ignore[attr-defined]
        settle(state)
        assert state.skipped == 1
        save(state, folder / str(late))
        resume_(other, folder / str(late))
        assert same(tensors_of(other), tensors_of(state))
        more = [train_step(each, batches[4]) for each in (state, other)]
        assert torch.equal(*more)
        left.append((torch.stack(losses), more[0], tensors_of(state)))
    (one, last, table), (two, other_last, other_table) = left
    assert torch.equal(one, two)
    assert torch.equal(last, other_last)
    assert same(table, other_table)


def test_skipped_steps_and_checkpoints_are_those_of_a_run_that_never_waits(tmp_path: Path) -> None:
    interpreted(late_and_early, tmp_path)


def unmoved_after_a_bad_step() -> None:
    with late_asides():
        state = make_state()
    first, second = first_batches(state, 2)
    train_step(state, first)
    before = state.head.centres.table.clone()
    with broken(state, "loss"):
        train_step(state, second)
    assert torch.equal(state.head.centres.table, before)


def test_a_bad_step_moves_nothing_later_either() -> None:
    interpreted(unmoved_after_a_bad_step)


def reads_of_a_rank(rank: int, shards: int) -> tuple[dict[str, int], int]:
    """Host reads of the second step of a rank with others, and its samples."""
    state = make_state(global_batch=7, shards=shards)
    first, second = first_batches(state, 2)
    train_step(state, first)
    with HostReads() as spy:
        train_step(state, second)
    settle(state)
    return {place: n for place, n in spy.found.items() if not place.startswith("data/")}, len(
        second.labels
    )


def reads_of_two_ranks(folder: Path, shards: int) -> list[Any]:
    return ranks_in(folder, reads_of_a_rank, 2, shards)


@pytest.mark.parametrize("shards", [1, 2])
def test_a_step_of_two_ranks_with_unequal_parts_reads_nothing_from_the_device(
    shards: int, tmp_path: Path
) -> None:
    assert interpreted(reads_of_two_ranks, tmp_path, shards) == [({}, 4), ({}, 3)]


def step_without_values() -> list[str]:
    """A step on device "meta", which has no values: to read one, or to wait for one, is seen."""
    from facescale.kernels.cuda.resources import launches

    late = mock.Mock(spec=LateNumbers)
    late.return_value.read.return_value = 0, 0
    with (
        mock.patch.object(cuda, "_runs_on", return_value=True),
        mock.patch.object(torch, "autocast", return_value=nullcontext()),
        mock.patch.object(checks, "LateNumbers", late),
        mock.patch.object(step, "LateNumbers", late),
        mock.patch.object(step, "learn_unless_"),  # torch has no fused SGD there
        launches() as seen,
    ):
        state = make_state(False, device="meta")
        state.optimizer.param_groups[0]["fused"] = True
        state.head.centres._all_started = True
        for batch in first_batches(state, 2):
            with HostReads() as spy:
                train_step(state, batch)
    assert len(seen) == 12
    return [place for place in spy.found if not place.startswith("data/transforms.py")]


def test_a_step_needs_no_value_of_the_device_and_waits_for_no_copy() -> None:
    assert compiled(step_without_values) == []
