"""One run folder, one run."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from facescale.distributed import Group
from facescale.training import loop, train
from facescale.training.lock import NAME, locked
from facescale.training.step import train_step
from runs import small_run

ALONE = Group()
HOLD = """
import sys, time
from pathlib import Path
from facescale.distributed import Group
from facescale.training.lock import locked
with locked(Path(sys.argv[1]), Group()):
    print("held", flush=True)
    time.sleep(60)
"""


def hold(folder: Path) -> subprocess.Popen[str]:
    """Another process that holds the folder."""
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True
    )
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    return other


def test_a_second_run_is_refused_and_a_dead_one_is_followed(tmp_path: Path) -> None:
    with hold(tmp_path) as other:
        with pytest.raises(OSError, match=rf"in use by process {other.pid} on .*--output"):
            train(small_run(), tmp_path, resume=True)
        other.kill()
        other.wait()
    assert (tmp_path / NAME).exists()
    with locked(tmp_path, ALONE) as folder:
        folder.check()
    assert not (tmp_path / NAME).exists()


def test_a_number_that_another_process_got_does_not_hold(tmp_path: Path) -> None:
    parent = os.getppid()
    for owner in ({"start": "1"}, {"start": "?"}):
        held = {"host": socket.gethostname(), "pid": parent} | owner
        (tmp_path / NAME).write_text(json.dumps(held))
        with locked(tmp_path, ALONE) as folder:
            folder.check()


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"host": 3}', '{"pid": "x"}', "\udcff"])
def test_a_lock_that_was_cut_off_holds_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / NAME).write_bytes(text.encode(errors="surrogateescape"))
    with locked(tmp_path, ALONE) as folder:
        folder.check()


def test_a_lock_of_another_host_is_respected(tmp_path: Path) -> None:
    held = {"host": "elsewhere", "pid": 1, "start": None}
    (tmp_path / NAME).write_text(json.dumps(held))
    with (
        pytest.raises(OSError, match=rf"process 1 on elsewhere.*delete .*{NAME}"),
        locked(tmp_path, ALONE),
    ):
        pass


@pytest.mark.usefixtures("tiny_y1")
@pytest.mark.usefixtures("tiny_y1")
def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place, reason in (("file", "File exists"), ("file/run", "Not a directory")):
        with pytest.raises(OSError, match=f"^{tmp_path / place}: {reason}$"):
            train(small_run(), tmp_path / place)


def test_a_folder_deleted_under_a_run_ends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "run"

    def delete_then_step(*arguments: object) -> object:
        shutil.rmtree(output)
        monkeypatch.setattr(loop, "train_step", train_step)
        return train_step(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "train_step", delete_then_step)
    began = time.monotonic()
    with pytest.raises(OSError, match="was deleted or replaced"):
        train(small_run(), output)
    assert time.monotonic() - began < 60
    assert not output.exists()
