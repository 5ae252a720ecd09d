"""Kernels are built once, kept by what they depend on, and done without where that fails."""

import ctypes
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from facescale.cli import main
from facescale.kernels.cpu import build

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


def _kept(sources: Path) -> list[str]:
    return sorted(path.name for path in (sources / "cache/facescale").iterdir())


def _answer() -> int:
    library = build.library("probe")
    assert library is not None, build.missing()
    return int(library.answer())


def test_a_kernel_is_built_once_and_found_again(sources: Path) -> None:
    assert _answer() == 42
    (built,) = _kept(sources)
    stamp = (sources / "cache/facescale" / built).stat().st_mtime_ns
    _forget()
    assert _answer() == 42
    assert (sources / "cache/facescale" / built).stat().st_mtime_ns == stamp


def test_a_changed_source_or_processor_has_a_build_of_its_own(
    sources: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _answer() == 42
    (sources / "probe.cpp").write_text(SOURCE.replace("42", "43"))
    _forget()
    assert _answer() == 43
    monkeypatch.setattr(build, "_processor", lambda: "another")
    _forget()
    assert _answer() == 43
    assert len(_kept(sources)) == 3


def test_a_process_that_dies_while_building_leaves_nothing_in_the_way(sources: Path) -> None:
    folder = sources / "cache/facescale"
    folder.mkdir(parents=True)
    (folder / "tmpdead").mkdir()
    (folder / "tmpdead/probe-0.so").write_bytes(b"half a libr")
    assert _answer() == 42


@pytest.mark.parametrize(
    ("break_it", "reason"),
    [
        (lambda folder, patch: patch.setenv("PATH", str(folder)), "install g\\+\\+"),
        (lambda folder, patch: (folder / "probe.cpp").write_text("int main( {"), "probe.cpp"),
        (lambda folder, patch: (folder / "cache").write_text("a file"), "XDG_CACHE_HOME"),
        (lambda folder, patch: patch.setenv(build.OFF, "0"), "FACESCALE_NATIVE is 0"),
    ],
    ids=["no compiler", "not C++", "no cache", "switched off"],
)
def test_where_a_kernel_cannot_be_built_there_is_none_and_a_reason(
    sources: Path, monkeypatch: pytest.MonkeyPatch, break_it: object, reason: str
) -> None:
    assert callable(break_it)
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
