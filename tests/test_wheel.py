"""The wheel has every file of the package, and trains the quick start in an empty environment."""

import os
import subprocess
import sys
import venv
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parents[1]


def package_files() -> set[str]:
    files = (path for path in (ROOT / "src").rglob("*") if path.is_file())
    return {
        str(path.relative_to(ROOT / "src"))
        for path in files
        if "__pycache__" not in path.parts and path.suffix != ".pyc"
    }


def assert_complete(wheel: Path) -> None:
    names = {name for name in ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == package_files()
    assert {Path(name).suffix for name in names} >= {".cpp", ".h", ".yaml", ".html", ".md", ".py"}


def test_the_wheel_has_every_file_of_the_package(tmp_path: Path) -> None:
    pytest.importorskip("hatchling", reason="the build backend comes with the extra 'dev'")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    assert_complete(wheel)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_wheel_trains_the_quick_start_in_an_empty_environment(tmp_path: Path) -> None:
    def run(*command: str | Path) -> str:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", tmp_path, ROOT)
    (wheel,) = tmp_path.glob("*.whl")
    assert_complete(wheel)
    venv.create(tmp_path / "venv", with_pip=True)
    bin_folder = tmp_path / "venv" / "bin"
    constraints = ROOT / "constraints.txt"
    python = bin_folder / "python"
    install: list[str | Path] = [python, "-m", "pip", "install", "--quiet", "-c", constraints]
    run(*install, "torch")  # first and alone, as in the Makefile
    run(*install, f"facescale[demo] @ file://{wheel}")
    train = ("train", "quickstart", "--train.steps", "20", "--evaluation.every", "20")
    run(bin_folder / "facescale", *train, "--output", tmp_path / "run")
    files = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"model.safetensors", "training.png", "roc.png", "checkpoints"} <= files
    found = run(
        python,
        "-c",
        "import facescale\nfrom facescale.kernels.cpu.build import missing\n"
        "print(facescale.__file__, missing() or 'compiled')",
    )
    assert str(tmp_path / "venv") in found
