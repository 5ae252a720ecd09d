"""A full disk costs a line, no checkpoint and no run."""

import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import RunRanks
from facescale.checkpoint import folder as checkpoint
from facescale.config import Config
from facescale.distributed import Group, world_group
from facescale.training import train
from facescale.training.trackers import Trackers
from runs import assert_same_model, end, run_of, start


def limited_file(rank: int, config: Config, output: Path) -> str:
    """Train where the files of the last rank may not grow beyond half of its part."""
    train(run_of(steps=2), output)
    advance = Trackers.advance

    def advance_and_limit(trackers: Trackers) -> None:
        advance(trackers)
        # not before: the ranks find each other through a file that grows
        if rank == world_group().size - 1 and trackers.step == 3:
            most = 1_000 if rank else 50_000  # the first rank writes the backbone too
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))

    Trackers.advance = advance_and_limit  # type: ignore[assignment, method-assign]
    return on_full_disk(rank, config, output)


@pytest.mark.usefixtures("tiny_y1")
@pytest.mark.parametrize("size", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_file_that_cannot_grow_on_one_rank_is_one_line_on_every_rank(
    run_ranks: RunRanks, tmp_path: Path, size: int
) -> None:
    lines = run_ranks(limited_file, size, run_of(steps=4), tmp_path / "run")
    for line in lines:
        assert line == lines[0]
        assert "step-00000004 could not be written: [Errno 27] File too large" in line
        assert line.endswith("the last one is step-00000002. Mend that, and go on with --resume")
        assert "\n" not in line
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == ["step-00000002"]


def stuck_line(rank: int, config: Config, output: Path) -> str:
    """Train where from step 3 on no file of the first rank may grow."""
    advance, (_, most) = Trackers.advance, resource.getrlimit(resource.RLIMIT_FSIZE)

    def advance_and_stick(trackers: Trackers) -> None:
        advance(trackers)
        if rank == 0 and trackers.step == 3:
            resource.setrlimit(resource.RLIMIT_FSIZE, (10, most))

    Trackers.advance = advance_and_stick  # type: ignore[assignment, method-assign]
    try:
        return on_full_disk(rank, config, output)
    finally:  # this rank's answer goes into a file
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))


@pytest.mark.usefixtures("tiny_y1")
@pytest.mark.parametrize("size", [1, 2])
def test_a_line_that_cannot_be_written_down_is_told_by_every_rank(
    run_ranks: RunRanks, tmp_path: Path, size: int
) -> None:
    lines = run_ranks(stuck_line, size, run_of(steps=4), tmp_path / "run")
    assert set(lines) == {
        f"{tmp_path / 'run/training.log'} could not be written: File too large; "
        "mend that, and go on with --resume"
    }
    undisturbed = tmp_path / "undisturbed"
    for output in (undisturbed, tmp_path / "run"):
        assert end(start(run_of(steps=4), output, size)) == [0] * size
    assert_same_model(tmp_path / "run", undisturbed)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 4 MiB: room for a few checkpoints of a tiny run."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)],
        capture_output=True,
        text=True,
    )
    if mounted.returncode:
        pytest.skip(f"a small disk needs the right to mount: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def fill(disk: Path, but: int) -> None:
    """Leave `but` bytes of room, of what there still is."""
    with (disk / "ballast").open("ab", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            file.truncate(max(0, file.tell() - but))


def on_full_disk(rank: int, config: Config, output: Path) -> str:
    with pytest.raises(OSError, match="could not be written") as error:
        train(config, output, resume=True)
    return str(error.value)


@pytest.mark.usefixtures("tiny_y1")
@pytest.mark.parametrize("size", [1, 2])
def test_a_full_disk_is_one_line_and_with_room_the_run_goes_on(
    run_ranks: RunRanks, tmp_path: Path, small_disk: Path, size: int
) -> None:
    config, output, undisturbed = run_of(steps=4), small_disk / "run", tmp_path / "undisturbed"
    assert end(start(config, undisturbed, size)) == [0] * size
    first, _ = checkpoint.checkpoints(undisturbed / "checkpoints")
    bytes_of_one = sum(path.stat().st_size for path in first.iterdir())

    for room, unwritten in ((3 * bytes_of_one // 2, "step-00000004"), (0, ".lock")):
        fill(small_disk, but=room)
        lines = run_ranks(on_full_disk, size, config, output)
        assert set(lines) == {lines[0]}
        assert f"{unwritten} could not be written: " in lines[0]
        assert "No space left on device" in lines[0]
        assert lines[0].endswith("end that, and go on with --resume")
        assert "\n" not in lines[0]
        (saved,) = (output / "checkpoints").iterdir()
        assert saved.name == first.name
        assert checkpoint.damage(saved, Group()) is None

    (small_disk / "ballast").unlink()
    assert end(start(config, output, size)) == [0] * size
    assert_same_model(output, undisturbed)
