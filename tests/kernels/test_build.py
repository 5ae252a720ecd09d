"""Kernels are built once, kept by what they depend on, and done without where that fails."""

import ctypes
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from facescale.cli import main
from facescale.kernels.cpu import build, keep

KEPT = "cache/facescale/kernels"
SOURCE = 'extern "C" int answer() { return 42; }\n'


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of sources with one kernel, and a cache of its own."""
    if build.missing():
        pytest.skip(str(build.missing()))
    (tmp_path / "probe.cpp").write_text(SOURCE)
    monkeypatch.setattr(build, "SOURCES", tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    _forget()
    yield tmp_path
    monkeypatch.undo()
    _forget()


def _forget() -> None:
    build.missing.cache_clear()
    build._load.cache_clear()
    build._warn_once.cache_clear()
    build._announce.cache_clear()
    build._version.cache_clear()


def _kept(sources: Path) -> list[Path]:
    return sorted((sources / KEPT).glob("*.so"))


def _answer() -> int:
    library = build.library("probe")
    assert library is not None, build.missing()
    return int(library.answer())


def test_a_kernel_is_built_once_and_found_again(
    sources: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert _answer() == 42
    assert "compiling the kernels" in caplog.text
    caplog.clear()
    (built,) = _kept(sources)
    stamp = built.stat().st_mtime_ns
    _forget()
    assert _answer() == 42
    assert built.stat().st_mtime_ns == stamp
    assert not caplog.records
    assert sorted(path.name for path in built.parent.iterdir()) == sorted(
        ["lock", built.name, f"{built.name}.sum"]
    )


def test_a_changed_source_or_processor_has_a_build_of_its_own(
    sources: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _answer() == 42
    (sources / "probe.cpp").write_text(SOURCE.replace("42", "43"))
    _forget()
    assert _answer() == 43
    for number, part in enumerate(("_processor", "_version")):
        monkeypatch.setattr(build, part, lambda *_: "another")
        build._load.cache_clear()
        assert _answer() == 43
        assert len(_kept(sources)) == 3 + number


@pytest.mark.parametrize("mask", [0o000, 0o027, 0o077])
def test_nobody_else_may_write_what_is_kept_whatever_the_umask(sources: Path, mask: int) -> None:
    (sources / "cache/facescale").mkdir(parents=True)
    before = os.umask(mask)
    try:
        assert _answer() == 42
    finally:
        os.umask(before)
    folder = sources / KEPT
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}


def _evil(built: Path) -> bytes:
    """Another library, which would answer 13."""
    source = built.with_suffix(".cpp")
    source.write_text(SOURCE.replace("42", "13"))
    evil = built.with_suffix(".evil")
    subprocess.run(["c++", "-shared", "-fPIC", str(source), "-o", str(evil)], check=True)
    return evil.read_bytes()


def _is_foreign(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = Path.lstat

    def lstat(self: Path) -> os.stat_result:
        status = own(self)
        return os.stat_result((*status[:4], 12345, *status[5:])) if self == path else status

    monkeypatch.setattr(Path, "lstat", lstat)


@pytest.mark.parametrize(
    "damage", ["empty", "cut", "replaced", "writable", "link", "foreign", "no sum", "folder"]
)
def test_a_library_that_others_may_have_written_or_that_is_damaged_is_built_anew(
    sources: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    assert _answer() == 42
    (built,) = _kept(sources)
    whole, evil = built.read_bytes(), _evil(built)
    built.unlink()  # this process has the old one mapped
    match damage:
        case "empty":
            built.write_bytes(b"")
        case "cut":
            built.write_bytes(whole[: len(whole) // 2])
        case "link":
            built.with_suffix(".evil").write_bytes(whole)
            built.symlink_to(built.with_suffix(".evil"))
        case "folder":
            (built / "inside").mkdir(parents=True)
        case "replaced":
            built.write_bytes(evil)
        case _:
            built.write_bytes(evil)
            built.with_name(f"{built.name}.sum").write_bytes(keep._checksum(evil))
    if damage == "writable":
        built.chmod(0o666)
    if damage == "foreign":
        _is_foreign(built, monkeypatch)
    if damage == "no sum":
        built.with_name(f"{built.name}.sum").unlink()
    _forget()
    assert _answer() == 42
    assert built.lstat().st_mode & 0o777 == 0o600
    assert not built.is_symlink()


@pytest.mark.parametrize("fault", ["link", "writable", "foreign", "file", "no home"])
def test_without_a_safe_folder_kernels_are_built_for_the_process_alone(
    sources: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    fault: str,
) -> None:
    folder = sources / KEPT
    folder.parent.mkdir(parents=True)
    if fault == "file":
        folder.write_text("a file")
    elif fault == "link":
        (sources / "elsewhere").mkdir()
        folder.symlink_to(sources / "elsewhere")
    else:
        folder.mkdir()
    if fault == "writable":
        folder.chmod(0o770)
    if fault == "foreign":
        _is_foreign(folder, monkeypatch)
    if fault == "no home":
        monkeypatch.setattr(build, "cache_folder", lambda: None)
    monkeypatch.setenv("TMPDIR", str(sources / "tmp"))
    (sources / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", None)
    assert _answer() == 42
    assert not _kept(sources)
    assert not list((sources / "tmp").iterdir())
    assert "set XDG_CACHE_HOME" in caplog.text
    assert len(caplog.records) == 2  # and that it is compiled


def test_what_a_killed_build_left_is_cleared(sources: Path) -> None:
    folder = keep.private_folder(sources / KEPT)
    for name, age_s in (("build-dead", 10_000), ("build-alive", 0)):
        (folder / name).mkdir()
        (folder / name / "probe-0.so").write_bytes(b"half a libr")
        os.utime(folder / name, (time.time() - age_s,) * 2)
    assert _answer() == 42
    assert [path.name for path in folder.glob("build-*")] == ["build-alive"]


def test_ranks_that_start_at_once_build_once(
    sources: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler, count = sources / "counting", sources / "count"
    compiler.write_text(f'#!/bin/sh\n[ "$1" = --version ] || echo x >> {count}\nexec c++ "$@"\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    _forget()
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    ranks = [context.Process(target=lambda: answers.put(_answer())) for _ in range(6)]
    for rank in ranks:
        rank.start()
    assert [answers.get() for _ in ranks] == [42] * 6
    for rank in ranks:
        rank.join(20)
    assert count.read_text() == "x\n"


def test_a_compiler_that_hangs_is_ended_with_its_children(
    sources: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = sources / "slow"
    compiler.write_text("#!/bin/sh\nsleep 60 &\nwait\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setattr(build, "COMPILE_LIMIT_S", 0.5)
    _forget()
    began = time.monotonic()
    assert build.library("probe") is None
    assert "slow took longer than 0 s" in str(build.missing())
    assert time.monotonic() - began < 10


def test_the_reason_is_the_first_error_and_not_the_first_line(
    sources: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (sources / "deep.h").write_text("#warning look here\nint broken( {\n")
    (sources / "probe.cpp").write_text('#include "deep.h"\n' + SOURCE)
    _forget()
    assert "error: " in str(build.missing())
    assert "In file included" not in str(build.missing())
    (sources / "probe.cpp").write_text(SOURCE)
    monkeypatch.setattr(build, "FLAGS", (*build.FLAGS, "-lnowhere"))
    _forget()
    assert "cannot find -lnowhere" in str(build.missing())


@pytest.mark.parametrize(
    ("break_it", "reason"),
    [
        (lambda folder, patch: patch.setenv("PATH", str(folder)), "install g\\+\\+"),
        (lambda folder, patch: (folder / "probe.cpp").write_text("int main( {"), "probe.cpp"),
        (lambda folder, patch: patch.setenv(build.OFF, "0"), "FACESCALE_NATIVE is 0"),
    ],
    ids=["no compiler", "not C++", "switched off"],
)
def test_where_a_kernel_cannot_be_built_there_is_none_and_a_reason(
    sources: Path, monkeypatch: pytest.MonkeyPatch, break_it: object, reason: str
) -> None:
    assert callable(break_it)
    monkeypatch.delenv("CXX", raising=False)
    break_it(sources, monkeypatch)
    _forget()
    assert build.library("probe") is None
    with pytest.raises(build.BuildError, match=reason):
        raise build.BuildError(build.missing())


def test_a_kernel_shares_the_threads_of_torch() -> None:
    """Two pools of threads on the same cores would wait for each other."""
    library = build.library("head")
    if library is None:
        pytest.skip(str(build.missing()))
    assert isinstance(library, ctypes.CDLL)
    program = (
        "import torch; from facescale.kernels.cpu.build import library; library('head');"
        "print(sum('libgomp' in line and 'r-x' in line for line in open('/proc/self/maps')))"
    )
    out = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert out.stdout.strip() == "1"


@pytest.mark.usefixtures("tiny_y1")
def test_a_run_without_kernels_says_so_and_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(build.OFF, "0")
    _forget()
    options = (
        "--backbone.name y1 --device cpu --data.num_classes 50 --data.num_images 64 "
        f"--train.steps 2 --output {tmp_path / 'run'}"
    )
    try:
        main(["train", "synthetic", *options.split()])
    finally:
        _forget()
    said = "without compiled kernels a step takes longer: FACESCALE_NATIVE is 0"
    assert said in capsys.readouterr().out
    assert (tmp_path / "run" / "checkpoints" / "step-00000002").is_dir()
