"""What is told from what: a mistake of the user is one line, a fault of ours shows where it is."""

import errno
import json
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn

import pytest
import yaml

from facescale import cli
from facescale.cli import main
from facescale.cli.mistakes import one_line

FAULTS = [AssertionError("odd"), TypeError("odd"), AttributeError("odd"), KeyError("odd"),
          IndexError("odd"), RuntimeError("odd"), NotImplementedError("odd")]  # fmt: skip


def ending(
    error: BaseException, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[object, str]:
    """Exit status and stderr of a command that raises `error`."""

    def fail(_: object) -> NoReturn:
        raise error

    module = SimpleNamespace(USAGE="", add_options=lambda parser: None, run=fail)
    monkeypatch.setattr(cli, "import_module", lambda name: module)
    with pytest.raises(SystemExit) as end:
        main(["presets"])
    return end.value.code, capsys.readouterr().err


@pytest.mark.parametrize("error", FAULTS, ids=lambda error: type(error).__name__)
def test_a_fault_of_ours_shows_its_traceback_and_asks_for_a_report(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    status, said = ending(error, monkeypatch, capsys)
    assert status == 1
    assert "in fail\n" in said
    last = said.splitlines()[-1]
    assert last.startswith(f"facescale: {type(error).__name__}: ")
    assert "please report it with the lines above" in last


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("too  many\nlines"), "too many lines (ValueError; FACESCALE_TRACEBACK=1"),
        (FileNotFoundError(errno.ENOENT, "No such file", "a/b"), "a/b: there is no such file"),
        (PermissionError(errno.EACCES, "no", "a/b"), "a/b: permission denied; it belongs to"),
        (PermissionError(errno.EPERM, "no", b"a/b"), "a/b: permission denied"),
        (IsADirectoryError(errno.EISDIR, "no", "a"), "a: is a folder, not a file"),
        (OSError(errno.ENOSPC, "no", "a"), "a: the disk is full"),
        (FileExistsError(errno.EEXIST, "File exists", "a"), "a: is there already, and is not a"),
        (OSError(errno.ELOOP, "no", "a"), "a: is a symbolic link that leads nowhere"),
        (OSError(errno.EIO, "Input/output error", "a"), "a: Input/output error"),
        (OSError("run/x could not be written: full"), "run/x could not be written: full"),
        (OSError(errno.EIO, "no", "a\n\x1b[2J\u202e"), r"a\n\x1b[2J\u202e: no"),
        (ValueError("class '\x1b[31mred\x07'"), r"class '\x1b[31mred\x07'"),
        (ConnectionError("the other ranks are gone"), "the other ranks are gone"),
        (MemoryError(), "out of memory; take a smaller batch or fewer identities"),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
            "facescale: out of memory; take a smaller batch or fewer identities",
        ),
        (FloatingPointError("step 3: the loss is not finite"), "step 3: the loss is not finite"),
        (ModuleNotFoundError("No module named 'onnx'", name="onnx"), "'facescale[export]'"),
        (ModuleNotFoundError("No module named 'cv2.x'", name="cv2.x"), "'facescale[photos]'"),
        (ImportError("needs torch 2.11"), "needs torch 2.11"),
        (pickle.UnpicklingError("truncated"), "truncated"),
        (zipfile.BadZipFile("no zip"), "no zip"),
        (EOFError(), "EOFError"),
        (json.JSONDecodeError("Expecting value", "x", 0), "Expecting value"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "odd"), "a text file is not UTF-8"),
        (yaml.YAMLError("odd"), "odd"),
        (type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory"), "CUDA out of memory"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_a_mistake_is_one_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
    line: str,
) -> None:
    status, said = ending(error, monkeypatch, capsys)
    assert status == 2
    assert said.startswith("facescale: ")
    assert said.count("\n") == 1
    assert line in said
    monkeypatch.setenv("FACESCALE_TRACEBACK", "1")
    status, said = ending(error, monkeypatch, capsys)
    assert status == 2
    assert "in fail\n" in said  # everything shows
    assert line in said.splitlines()[-1]


def test_ctrl_c_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ending(KeyboardInterrupt(), monkeypatch, capsys) == (2, "facescale: interrupted\n")


def test_a_limit_on_threads_is_named() -> None:
    error = RuntimeError("can't start new thread")  # as CPython says it
    assert "raise the limit (`ulimit -u`" in str(one_line(error))


def test_a_link_without_its_target_is_told_as_such(tmp_path: Path) -> None:
    link = tmp_path / "mine.yaml"
    link.symlink_to("gone.yaml")
    with pytest.raises(FileNotFoundError) as error:
        link.read_bytes()
    assert one_line(error.value) == f"{link}: is a symbolic link whose target is missing"


def facescale(*words: str | bytes, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # type: ignore[call-overload,no-any-return]
        [sys.executable, "-m", "facescale", *words],
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        timeout=60,
        **options,
    )


def test_links_and_strange_paths_are_one_line_each(tmp_path: Path) -> None:
    (tmp_path / "link.yaml").symlink_to("gone.yaml")
    (tmp_path / "loop.yaml").symlink_to("loop.yaml")
    for word, said in (
        ("link.yaml", "link.yaml: is a symbolic link whose target is missing"),
        ("loop.yaml", "loop.yaml: is a symbolic link that leads nowhere"),
        (b"\xff[/].yaml", "is neither a preset"),
    ):
        done = facescale("train", word, cwd=tmp_path)
        assert done.returncode == 2
        assert said in done.stderr
        assert done.stderr.count("\n") == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_says_permission(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.touch(mode=0)
    done = facescale("train", str(path))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert f"{path}: permission denied" in done.stderr


def test_a_reader_that_leaves_is_no_error() -> None:
    said = f"{{ sleep 0.1; exec {sys.executable} -m facescale --help; }}"
    program = f"{said} | (exec 0<&-); echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stderr == ""
    assert done.stdout.strip() == "141"


def test_the_line_is_the_last_that_torchrun_shows(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=1"),
            *("-m", "facescale", "train", "nosuch"),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode != 0
    last = [line for line in done.stderr.splitlines() if line.strip(" =")][-1]
    assert "traceback : facescale: nosuch is neither a preset" in last


def test_a_busy_port_is_named(tmp_path: Path) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        ranks = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        done = facescale(
            *("train", "synthetic", "--train.steps", "1", "--timeout_s", "5", "--device", "cpu"),
            cwd=tmp_path,
            env=os.environ | ranks | where,
        )
    assert done.returncode == 2
    assert f"port {port} of this host is in use by another process" in done.stderr.splitlines()[-1]
