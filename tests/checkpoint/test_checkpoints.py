"""Which checkpoints stay, which one is taken, and what a folder from a stranger can do."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_checkpoint_record import RUN
from torch import nn

from facescale.checkpoint import tensors
from facescale.checkpoint.folder import Part, checkpoints, damage, find, is_finite, save
from facescale.distributed import Group
from facescale.training import build, train
from facescale.training.resume import resume_
from facescale.training.resume import save as save_run
from runs import CPU, assert_equal_states, losses, run_of, small_run


def part(finite: bool = True) -> Part:
    return Part(
        shared={"backbone/weight": torch.ones(2)},
        own={"statistics": torch.ones(2)},
        centres=torch.zeros(5, 2, 4),
        first=0,
        finite=finite,
    )


def saved(folder: Path, step: int, finite: bool = True, keep: int = 2) -> Path:
    return save(folder, replace(RUN, step=step), part(finite), world=Group(), keep=keep)


def steps(folder: Path) -> list[int]:
    return [int(path.name.removeprefix("step-")) for path in checkpoints(folder)]


def test_the_last_finite_checkpoint_is_never_dropped(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        saved(tmp_path, step)
    assert steps(tmp_path) == [2, 3]
    for step in (4, 5, 6):
        saved(tmp_path, step, finite=False)
    assert steps(tmp_path) == [3, 5, 6]
    assert [is_finite(path) for path in checkpoints(tmp_path)] == [True, False, False]
    for step in (7, 8):
        saved(tmp_path, step)
    assert steps(tmp_path) == [7, 8]


def test_with_one_to_keep_the_finite_one_stays_too(tmp_path: Path) -> None:
    saved(tmp_path, 1, keep=1)
    saved(tmp_path, 2, finite=False, keep=1)
    assert steps(tmp_path) == [1, 2]
    saved(tmp_path, 3, keep=1)
    assert steps(tmp_path) == [3]


def test_steps_are_sorted_by_number_and_other_folders_left_alone(tmp_path: Path) -> None:
    for name in ("step-99999999", "step-100000000", "step-00000003"):
        (tmp_path / name).mkdir()
    for name in ("step-00000003 (copy)", "step-old", "step-00000002.format2"):
        (tmp_path / name).mkdir()
    (tmp_path / "step-00000009").write_text("no folder")
    assert steps(tmp_path) == [3, 99999999, 100000000]


@pytest.mark.usefixtures("tiny_y1")
@pytest.mark.parametrize("where", ["backbone", "momentum", "centres", "int8"])
def test_a_diverged_run_goes_on_from_its_last_finite_checkpoint(tmp_path: Path, where: str) -> None:
    config = small_run()
    if where == "int8":
        config = replace(config, head=replace(config.head, rows="int8"))
    state = build(config, CPU)
    losses(state, 2)
    save_run(state, tmp_path)
    losses(state, 1)
    parameter = next(p for p in state.backbone.parameters() if p.requires_grad)
    with torch.no_grad():
        if where == "backbone":
            parameter.view(-1)[0] = torch.nan
        elif where == "momentum":
            state.optimizer.state[parameter]["momentum_buffer"].view(-1)[0] = torch.inf
        elif where == "centres":
            state.head.centres.table[3, 1, 2] = -torch.inf
        else:
            state.head.centres.table[3, 1, -4:].view(torch.float32)[0] = torch.nan
    save_run(state, tmp_path)
    assert [is_finite(path) for path in checkpoints(tmp_path / "checkpoints")] == [True, False]
    resumed = build(config, CPU)
    (note,) = resume_(resumed, tmp_path)
    assert "step-00000003 has weights that are not finite; going on from step-00000002" in note
    assert resumed.step == 2


@pytest.mark.usefixtures("tiny_y1")
def test_a_resume_that_finds_nothing_says_so(tmp_path: Path) -> None:
    train(run_of(steps=1), tmp_path / "run", resume=True)
    line = f"no checkpoint in {tmp_path / 'run/checkpoints'}: starting at step 0"
    assert (tmp_path / "run/training.log").read_text().count(line) == 1
    train(run_of(steps=2), tmp_path / "run", resume=True)
    assert (tmp_path / "run/training.log").read_text().count(line) == 1


@pytest.mark.usefixtures("tiny_y1")
def test_adamw_goes_on_to_the_bit(tmp_path: Path) -> None:
    config = small_run()
    config = replace(config, optim=replace(config.optim, name="adamw"))
    state = build(config, CPU)
    losses(state, 2)
    save_run(state, tmp_path)
    resumed = build(config, CPU)
    resume_(resumed, tmp_path)
    assert losses(resumed, 2) == losses(state, 2)
    for mine, theirs in zip(
        resumed.backbone.parameters(), state.backbone.parameters(), strict=True
    ):
        assert torch.equal(mine, theirs)
        ours, other = resumed.optimizer.state[mine], state.optimizer.state[theirs]
        assert ours.keys() == other.keys()
        assert all(torch.equal(ours[key], other[key]) for key in ours)
    with pytest.raises(ValueError, match="its optimizer is AdamW, but this run's is SGD"):
        resume_(build(small_run(), CPU), tmp_path)


@pytest.mark.usefixtures("tiny_y1")
def test_momentum_keeps_its_layout_in_memory(tmp_path: Path) -> None:
    state = build(small_run(), CPU)
    losses(state, 2)
    save_run(state, tmp_path)
    resumed = build(small_run(), CPU)
    resume_(resumed, tmp_path)
    assert_equal_states(resumed, state)
    for mine in resumed.optimizer.state:
        assert resumed.optimizer.state[mine]["momentum_buffer"].stride() == mine.stride()


def test_only_regular_files_inside_are_read(tmp_path: Path) -> None:
    path = saved(tmp_path, 1)
    shutil.copytree(path, tmp_path / "outside")
    rank = path / "rank-00000.safetensors"
    rank.unlink()
    rank.symlink_to(tmp_path / "outside" / rank.name)
    assert damage(path, Group()) == f"{rank.name} is a link"
    rank.unlink()
    os.mkfifo(rank)
    assert damage(path, Group()) == f"{rank} is not a regular file"
    rank.unlink()
    shutil.copy(tmp_path / "outside" / rank.name, rank)
    assert damage(path, Group()) is None
    sums = path / "SHA256SUMS"
    for change in (
        ("rank-00000.safetensors", "../outside/rank-00000.safetensors"),
        ("rank-00000.safetensors", "/etc/hostname"),
        ("  run.json\n", "  run.json\n\n"),
        ("  run.json\n", "  run.json"),
    ):
        text = sums.read_text()
        sums.write_text(text.replace(*change))
        assert damage(path, Group()) == "SHA256SUMS is not readable", change
        sums.write_text(text)


def test_a_checkpoint_of_pickles_names_the_command_that_converts_it(tmp_path: Path) -> None:
    path = saved(tmp_path / "checkpoints", 1)
    (path / ".metadata").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(ValueError, match=f"format 2.* convert it: facescale unpack {path} --old"):
        find(tmp_path, Group())


def test_what_may_not_be_read_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path / "checkpoints", 1)

    def forbidden(*arguments: object) -> None:
        raise PermissionError(13, "Permission denied", str(path / "rank-00000.safetensors"))

    monkeypatch.setattr("facescale.checkpoint.folder.checksum", forbidden)  # root may read all
    with pytest.raises(ValueError, match=r"rank-00000\.safetensors: Permission denied"):
        find(tmp_path, Group())


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_checkpoint_that_is_half_removed_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tmp_path, 1, keep=1)

    def killed(path: Path, **_: object) -> None:
        (path / "run.json").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("facescale.checkpoint.folder.shutil.rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            saved(tmp_path, 2, keep=1)
    assert steps(tmp_path) == [2]
    assert find(tmp_path / "step-00000002", Group()).name == "step-00000002"
    saved(tmp_path, 3, keep=1)
    assert names(tmp_path) == ["step-00000003"]


def test_what_cannot_be_removed_now_ends_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    saved(tmp_path, 1, keep=1)

    def in_use(path: Path, **_: object) -> None:
        raise OSError(39, "Directory not empty", str(path))  # NFS, where somebody reads a file

    with monkeypatch.context() as patched:
        patched.setattr("facescale.checkpoint.folder.shutil.rmtree", in_use)
        saved(tmp_path, 2, keep=1)
    assert steps(tmp_path) == [2]
    assert f"{tmp_path / '.step-00000001.old'} could not be removed: " in caplog.text
    saved(tmp_path, 3, keep=1)
    assert names(tmp_path) == ["step-00000003"]


def test_a_checkpoint_that_was_moved_and_linked_is_dropped_as_a_link(tmp_path: Path) -> None:
    elsewhere, folder = tmp_path / "elsewhere", tmp_path / "run"
    saved(folder, 1, keep=1).rename(elsewhere)
    (folder / "step-00000001").symlink_to(elsewhere)
    saved(folder, 2, keep=1)
    assert names(folder) == ["step-00000002"]
    assert is_finite(elsewhere)


def test_steps_of_nine_digits_are_dropped_in_the_order_of_numbers(tmp_path: Path) -> None:
    for step in (99_999_999, 100_000_000):
        saved(tmp_path, step, keep=1)
    assert steps(tmp_path) == [100_000_000]


def test_the_state_of_another_optimizer_is_refused_with_the_remedy(tmp_path: Path) -> None:
    network = nn.Linear(2, 2)
    sgd = torch.optim.SGD(network.parameters(), momentum=0.9)
    network(torch.ones(1, 2)).sum().backward()
    sgd.step()
    shared = tensors.shared_tensors(network, sgd, nn.Module())
    path = save(tmp_path, RUN, replace(part(), shared=shared), world=Group(), keep=1)
    adamw = torch.optim.AdamW(network.parameters())
    with pytest.raises(ValueError, match=r"momentum_buffer is nothing .* AdamW keeps; give optim"):
        tensors.read_shared_(path, network, adamw)
