"""Tables and lines in pipes and narrow terminals, with names of every kind."""

import json
import logging
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from facescale import backbones, cli, save_backbone
from facescale.cli import main
from facescale.cli.terminal import escape, file_to_write, say, show, table
from facescale.data.pairs import PairSet, save_pairs
from mistakes import refused

LONG = "a/folder/with/a/very/long/name/that/goes/on/and/on/agedb_30"


@pytest.mark.parametrize("columns", ["20", "80", "300"])
def test_a_table_is_never_cut(
    columns: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    shown = table("pairs", *(f"figure number {n}" for n in range(9)))
    shown.add_row(escape(LONG), *"123456789")
    shown.add_row(escape("[/]x[bold]:100:"), *"abcdefghi")
    show(shown)
    say(f"[bold]{escape('[/]' + LONG)}:cat:[/]")
    header, first, second, line = capsys.readouterr().out.splitlines()
    assert header.split("  ")[1] == "pairs"
    assert header.endswith("figure number 8")
    assert first.split() == [LONG, *"123456789"]
    assert second.split() == ["[/]x[bold]:100:", *"abcdefghi"]
    assert line == f"[/]{LONG}:cat:"


def test_names_of_strangers_cannot_steer_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "\x1b[2Janna\r\n\u202e"
    shown = table("person")
    shown.add_row(escape(name))
    show(shown)
    say(escape(name))

    def warn(_: object) -> None:
        logging.getLogger("facescale.data.folder").warning("%s has no image", name)

    module = SimpleNamespace(USAGE="", add_options=lambda parser: None, run=warn)
    monkeypatch.setattr(cli, "import_module", lambda name: module)
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # those of pytest
    main(["presets"])
    said = capsys.readouterr()
    plain = r"\x1b[2Janna\r\n\u202e"
    assert [line.strip() for line in said.out.splitlines()] == ["person", plain, plain]
    assert said.err == f"{plain} has no image\n"


def test_a_file_that_cannot_be_written_is_known_before_the_work(tmp_path: Path) -> None:
    assert file_to_write(str(tmp_path / "new" / "roc.png")).parent.is_dir()
    with pytest.raises(IsADirectoryError, match="is a folder; give the name of a file"):
        file_to_write(str(tmp_path))
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        file_to_write(str(tmp_path / "file" / "roc.png"))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    save_backbone(path, backbones.build("r18_half", image_size=28).eval())
    return path


def few_pairs(path: Path, count: int, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(256, size=(2 * count, 112, 112, 3))
    same = np.arange(count) % 2 == 0
    save_pairs(path, PairSet("few", list(pixels.astype(np.uint8)), same))


def test_sets_of_one_name_are_two_rows_and_small_ones_get_fewer_folds(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "30")
    few_pairs(Path("emore/cfp_fp.bin"), 20)
    few_pairs(Path("ms1m/cfp_fp.bin"), 6, seed=1)
    sets = ["--pairs", "emore/cfp_fp.bin", "ms1m/cfp_fp.bin"]
    pictures = ["--plot", "pictures/roc.png", "--histogram", "pictures/scores.png"]
    main(["verify", str(model), *sets, "--device", "cpu", *pictures])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:3]] == ["emore/cfp_fp", "ms1m/cfp_fp"]
    assert lines[3] == "ms1m/cfp_fp: accuracy over 3 folds; published ones have 10"
    assert " ".join(lines[5].split()) == "emore/cfp_fp FAR TAR 95 % TAR (InsightFace) cosine >="
    assert sum("95 % intervals over pairs" in line for line in lines) == 2
    assert Path("pictures/roc.png").is_file()
    assert Path("pictures/scores.png").is_file()

    main(["verify", str(model), *sets, "--device", "cpu", "--folds", "2", "--json"])
    figures = json.loads(capsys.readouterr().out)
    assert list(figures) == ["emore/cfp_fp", "ms1m/cfp_fp"]
    for values in figures.values():
        assert values["folds"] == 2
        assert 0 <= values["accuracy"] <= 1
        assert {"accuracy_std", "tar", "auc", "eer", "threshold_cosine", "xnorm"} <= set(values)
        assert values["intervals"]["accuracy"]["low"] <= values["accuracy"]
        assert len(values["tar_at_far"]) == 6


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--pairs", "lfw"], "no verification set 'lfw': there is no lfw.bin"),
        (["--pairs", "four.bin", "--folds", "1"], "folds must be at least 2"),
        (["--pairs", "four.bin", "--folds", "5"], "cannot be cut into 5 folds"),
        (["--pairs", "four.bin", "--batch_size", "0"], "--batch_size must be at least 1"),
        (["--pairs", "four.bin", "--plot", "."], ". is a folder; give the name of a file"),
    ],
)
def test_what_verify_cannot_do_is_one_line(
    tmp_path: Path,
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    few_pairs(Path("four.bin"), 4)
    assert said in refused(capsys, "verify", str(model), "--device", "cpu", *words)


def test_presets_are_listed_for_people_and_programs(capsys: pytest.CaptureFixture[str]) -> None:
    main(["presets"])
    assert "face_emore with MobileFaceNet Y1" in capsys.readouterr().out
    main(["presets", "--json"])
    names = [preset["name"] for preset in json.loads(capsys.readouterr().out)]
    assert names[:3] == ["card_r100", "emore_r100", "emore_y1"]


def test_the_plan_is_given_to_programs(capsys: pytest.CaptureFixture[str]) -> None:
    words = "--memory 4GiB --device cpu --precision bf16 --sample-rate 0.5 --json"
    main(["plan", "emore_y1", *words.split()])
    plan = json.loads(capsys.readouterr().out)
    assert sum(plan["parts"].values()) == plan["total"]
    assert plan["fits"] is (plan["total"] <= 4 * 2**30)
    assert plan["largest_batch"] >= 1
