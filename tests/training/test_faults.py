"""A run that is hurt goes on from its last whole checkpoint, and ends as if nothing had been.

`make faults` hurts it at many more moments: FAULTS says at how many.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import RunRanks
from facescale.checkpoint import folder as checkpoint
from facescale.distributed import Group
from facescale.training import build, train, train_step
from facescale.training.metrics import read_metrics
from runs import CPU, assert_same_model, end, run_of, start

FAULTS = int(os.environ.get("FAULTS", "2"))


@pytest.mark.usefixtures("tiny_y1")
def test_a_rank_killed_at_any_moment_costs_no_bit(tmp_path: Path) -> None:
    config = run_of(steps=10)
    began = time.monotonic()
    assert end(start(config, tmp_path / "undisturbed", 2)) == [0, 0]
    whole_s = time.monotonic() - began
    draw = random.Random(7)
    broken_writes = 0
    for moment in range(FAULTS):
        output = tmp_path / f"hurt-{moment}"
        ranks = start(config, output, 2)
        time.sleep(draw.uniform(0.0, whole_s))
        ranks[draw.randrange(2)].kill()
        end(ranks)
        broken_writes += bool(list(output.glob("checkpoints/.step-*")))
        assert end(start(config, output, 2)) == [0, 0]
        assert_same_model(output, tmp_path / "undisturbed")
        assert [row["step"] for row in read_metrics(output / "metrics.jsonl")] == [*range(1, 11)]
        shutil.rmtree(output)
    print(
        f"{FAULTS} kills, {broken_writes} of them while a checkpoint was written: equal to the bit"
    )


@pytest.mark.usefixtures("tiny_y1")
@pytest.mark.parametrize("moment", ["_clear", "_sign", "_put_in_place", "_sync"])
def test_a_checkpoint_cut_in_half_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    config = run_of(steps=4)
    train(config, tmp_path / "undisturbed")
    before = getattr(checkpoint, moment)

    def dies(*arguments: Any) -> Any:
        if "00000004" in str(arguments):
            os.kill(os.getpid(), signal.SIGKILL)
        return before(*arguments)

    def dies_at_the_second(*arguments: Any) -> Any:
        if list(arguments[0].glob("step-*")):
            os.kill(os.getpid(), signal.SIGKILL)
        return before(*arguments)

    def hurt(_: int) -> None:
        monkeypatch.setattr(checkpoint, moment, dies_at_the_second if moment == "_clear" else dies)

    output = tmp_path / "hurt"
    assert end(start(config, output, 1, hurt)) == [-signal.SIGKILL]
    saved = checkpoint.checkpoints(output / "checkpoints")
    assert [path.name for path in saved] == ["step-00000002"]
    assert checkpoint.damage(saved[0], Group()) is None
    assert end(start(config, output, 1)) == [0]
    assert_same_model(output, tmp_path / "undisturbed")
    assert not list(output.glob("checkpoints/.step-*"))


def flip_a_byte(path: Path, draw: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


@pytest.mark.usefixtures("tiny_y1")
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_taken(tmp_path: Path) -> None:
    config, output = run_of(steps=4), tmp_path / "hurt"
    train(config, tmp_path / "undisturbed")
    shutil.copytree(tmp_path / "undisturbed", output)
    path = checkpoint.checkpoints(output / "checkpoints")[-1]
    draw = random.Random(1)
    files = sorted(entry.name for entry in path.iterdir())
    assert files == ["SHA256SUMS", "rank-00000.safetensors", "run.json"]
    for name in files * max(1, FAULTS // 4):
        whole = (path / name).read_bytes()
        flip_a_byte(path / name, draw)
        assert checkpoint.damage(path, Group()) is not None, name
        (path / name).unlink()
        assert checkpoint.damage(path, Group()) == f"{name} is missing"
        (path / name).write_bytes(whole)
    assert checkpoint.damage(path, Group()) is None

    flip_a_byte(path / "rank-00000.safetensors", draw)
    train(config, output, resume=True)
    line = (
        f"{path} is damaged: rank-00000.safetensors differs from its checksum; going on from "
        "step-00000002"
    )
    assert (output / "training.log").read_text().count(line) == 1
    assert_same_model(output, tmp_path / "undisturbed")


@pytest.mark.usefixtures("tiny_y1")
def test_without_a_whole_checkpoint_a_run_does_not_begin_anew_by_itself(tmp_path: Path) -> None:
    config = run_of(steps=2)
    train(config, tmp_path)
    (path,) = checkpoint.checkpoints(tmp_path / "checkpoints")
    (path / "run.json").unlink()
    with pytest.raises(ValueError, match=r"no checkpoint is whole.*run.json is missing. Bring one"):
        train(config, tmp_path, resume=True)


@pytest.mark.usefixtures("tiny_y1")
@pytest.mark.parametrize(
    "number",
    [
        signal.SIGTERM,
        signal.SIGUSR1,
        *(
            pytest.param(number, marks=pytest.mark.slow)
            for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR2)
        ),
    ],
)
def test_asked_to_leave_all_ranks_save_at_one_step(tmp_path: Path, number: int) -> None:
    config = run_of(steps=100_000)  # it is never over before the signal comes
    output = tmp_path / "hurt"

    def hears(_: int) -> None:  # also where nohup ignores it, as a run then does
        signal.signal(number, signal.SIG_DFL)

    ranks = start(config, output, 2, hears)
    while not list(output.glob("checkpoints/step-*")):
        assert all(rank.is_alive() for rank in ranks)
        time.sleep(0.01)
    pid = ranks[1].pid  # one rank alone is asked
    assert pid is not None
    os.kill(pid, number)
    assert end(ranks) == [128 + number] * 2
    newest = checkpoint.checkpoints(output / "checkpoints")[-1]
    step = int(newest.name.removeprefix("step-"))
    assert step >= 2
    name = signal.Signals(number).name
    assert f"{name}: saved at step {step};" in (output / "training.log").read_text()
    shorter = run_of(steps=step + 3)
    assert end(start(shorter, tmp_path / "undisturbed", 2)) == [0, 0]
    assert end(start(shorter, output, 2)) == [0, 0]
    assert_same_model(output, tmp_path / "undisturbed")


def with_nan(rank: int, kind: str, nonfinite: str) -> tuple[str, list[float], int, bool]:
    """Three steps of which the second has a loss or gradient that is not finite, on rank 0."""
    state = build(run_of(steps=3, nonfinite=nonfinite), CPU)
    parameter = next(p for p in state.backbone.parameters() if p.requires_grad)
    said, shares = "", []

    def spoil(gradient: torch.Tensor) -> torch.Tensor:
        return gradient * torch.nan if state.step == 1 and rank == 0 else gradient

    if kind == "gradient":
        parameter.register_hook(spoil)
    with state.loader() as loader:
        for step in range(3):
            batch = next(loader)
            if kind == "loss" and step == 1 and rank == 0:
                saved = parameter.detach().clone()
                parameter.data.fill_(torch.inf)
            try:
                shares.append(train_step(state, batch).item())
            except FloatingPointError as error:
                said = str(error)
                break
            if kind == "loss" and step == 1 and rank == 0:
                parameter.data.copy_(saved)
    finite = all(bool(t.isfinite().all()) for t in state.backbone.state_dict().values())
    return said, shares, state.skipped, finite


@pytest.mark.usefixtures("tiny_y1")
@pytest.mark.parametrize("kind", ["loss", "gradient"])
def test_a_step_that_is_not_finite_stops_or_is_skipped(run_ranks: RunRanks, kind: str) -> None:
    (said, shares, _, _), (other, *_) = run_ranks(with_nan, 2, kind, "stop")
    assert said == other
    assert said.startswith(f"step 1: the {kind} is not finite; lower optim.lr (now")
    assert "Its batch: synthetic image " in said
    assert said.endswith(" and 1 more, see training.log")
    assert len(shares) == 1
    for said, shares, skipped, finite in run_ranks(with_nan, 2, kind, "skip"):
        assert (said, skipped) == ("", 1)
        assert len(shares) == 3
        assert finite


@pytest.mark.usefixtures("tiny_y1")
def test_skipped_steps_are_counted_in_the_metrics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(run_of(steps=2, nonfinite="skip"), tmp_path)
    assert [row["skipped"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [0, 0]


TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]


@pytest.mark.skipif("FAULTS" not in os.environ, reason="minutes; make faults")
@pytest.mark.timeout(1200)
def test_torchrun_restarts_what_was_killed(tmp_path: Path) -> None:
    command = [
        *("-m", "facescale", "train", "synthetic", "--data.num_classes", "50"),
        *("--data.num_images", "64", "--backbone.name", "y1", "--backbone.image_size", "28"),
        *("--train.batch_size", "4", "--train.steps", str(30 * FAULTS)),
        *("--checkpoint.every", "3"),
        *("--log_every", "1", "--device", "cpu", "--resume", "--output"),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    undisturbed = [*TORCHRUN, *command, str(tmp_path / "undisturbed")]
    subprocess.run(undisturbed, env=environment, check=True, timeout=300)
    draw, output = random.Random(11), tmp_path / "hurt"
    hurt = subprocess.Popen(
        [*TORCHRUN, f"--max-restarts={FAULTS}", *command, str(output)], env=environment
    )
    killed: set[int] = set()
    for _ in range(FAULTS):
        ranks = wait_for_ranks(hurt, killed)
        time.sleep(draw.uniform(0.0, 6.0))
        killed |= set(ranks)
        if hurt.poll() is None:
            os.kill(draw.choice(ranks), signal.SIGKILL)
    assert hurt.wait(timeout=300) == 0
    assert_same_model(output, tmp_path / "undisturbed")
    print(f"{FAULTS} kills under torchrun, {FAULTS} restarts: equal to the bit")


def wait_for_ranks(torchrun: "subprocess.Popen[bytes]", killed: set[int]) -> list[int]:
    """The process numbers of two ranks that run now."""
    children = Path(f"/proc/{torchrun.pid}/task/{torchrun.pid}/children")
    while torchrun.poll() is None:
        ranks = [pid for pid in map(int, children.read_text().split()) if pid not in killed]
        if len(ranks) == 2:
            return ranks
        time.sleep(0.05)
    pytest.fail("the run was over before all kills")
