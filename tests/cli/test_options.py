"""Options in layers: what overrides what, types and ranges, and YAML that wants to do harm."""

import time
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml

from facescale import cli
from facescale.cli import main
from facescale.cli.layers import Layer, build, merge, parse_layer, read_layer
from facescale.cli.parser import Parser
from facescale.cli.values import convert
from facescale.config import Config, TrainConfig
from mistakes import refused
from shared_data import shared_data


def config_of(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    """The config that a command would train with."""
    with pytest.raises(SystemExit) as ending:
        main(["train", *words, "--print_config"])
    said = capsys.readouterr()
    assert ending.value.code == 0, said.err
    values: dict[str, Any] = yaml.safe_load(said.out)
    return values


def test_options_win_over_files_and_files_over_the_preset(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    more = tmp_path / "more.yaml"
    more.write_text("optim: {lr: 5e-2, momentum: 0.5}\n")
    words = ["--optim.momentum", "0.25", "quickstart", "--config", str(more)]
    config = config_of(capsys, *words)
    assert config["optim"]["lr"] == 0.05  # 5e-2 is a text to YAML 1.1
    assert config["optim"]["momentum"] == 0.25
    assert config["optim"]["weight_decay"] == 0.05  # the preset's
    assert config["optim"]["clip_norm"] == 5
    assert config["optim"]["fused"] is None  # nobody's


def test_epochs_of_a_later_layer_replace_the_steps_of_an_earlier_one(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert config_of(capsys, "emore_r100")["train"]["steps"] == 180000
    config = config_of(capsys, "emore_r100", "--train.epochs", "3")
    assert (config["train"]["steps"], config["train"]["epochs"]) == (None, 3)
    both = config_of(capsys, "emore_r100", "--train.epochs", "3", "--train.steps", "7")
    assert both["train"]["steps"] == 7
    run = tmp_path / "config.yaml"  # a run's config says all, also that it has no epochs to count
    run.write_text(Config(train=Config().train).to_yaml())
    assert config_of(capsys, str(run), "--train.steps", "9")["train"]["steps"] == 9


def test_a_batch_of_a_later_layer_replaces_the_global_batch_of_an_earlier_one(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert config_of(capsys, "webface4m_ir101")["train"]["global_batch_size"] == 512
    train = config_of(capsys, "webface4m_ir101", "--train.batch_size", "32")["train"]
    assert (train["batch_size"], train["global_batch_size"]) == (32, None)
    both = ["--train.batch_size", "32", "--train.global_batch_size", "64"]
    assert config_of(capsys, "webface4m_ir101", *both)["train"]["global_batch_size"] == 64
    run = tmp_path / "config.yaml"  # a run's config says both
    run.write_text(Config(train=TrainConfig(global_batch_size=512)).to_yaml())
    assert config_of(capsys, str(run))["train"]["global_batch_size"] == 512


def test_the_sizes_of_a_preset_are_not_those_of_another_set(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert config_of(capsys, "emore_r100")["data"]["num_classes"] == 85742
    other = config_of(capsys, "emore_r100", "--data.path", "/data/mine")["data"]
    assert other["num_classes"] is None
    stated = ["--data.path", "/data/mine", "--data.num_classes", "5"]
    assert config_of(capsys, "emore_r100", *stated)["data"]["num_classes"] == 5
    noise = ["--data.path", "synthetic", "--data.num_images", "9"]
    assert config_of(capsys, "emore_r100", *noise)["data"]["num_classes"] == 85742
    mine = tmp_path / "mine.yaml"
    mine.write_text("data: {path: /data/mine, num_classes: 7}\n")
    assert config_of(capsys, str(mine))["data"]["num_classes"] == 7


def test_the_plan_keeps_the_sizes_of_a_preset() -> None:
    layers: list[Layer] = [{"data.num_classes": 5}, {"data.path": "/data/mine"}]
    assert "data.num_classes" not in merge(layers)
    assert merge(layers, keep_sizes=True)["data.num_classes"] == 5


@pytest.mark.parametrize(
    ("words", "sets"),
    [
        (["lfw"], ["lfw"]),
        (["lfw", "cfp_fp.bin"], ["lfw", "cfp_fp.bin"]),
        (["[lfw, cfp_fp.bin]"], ["lfw", "cfp_fp.bin"]),
        (["[]"], []),
    ],
)
def test_a_list_needs_no_brackets(
    capsys: pytest.CaptureFixture[str], words: list[str], sets: list[str]
) -> None:
    assert config_of(capsys, "small", "--evaluation.sets", *words)["evaluation"]["sets"] == sets


def test_a_section_may_be_given_as_yaml(capsys: pytest.CaptureFixture[str]) -> None:
    schedule = "{kind: step, boundaries: [10, 20], scales: [0.1, 0.01]}"
    words = ["--optim.schedule", schedule, "--optim.schedule.warmup", "3"]
    config = config_of(capsys, "synthetic", *words)["optim"]["schedule"]
    given = {"kind": "step", "boundaries": [10, 20], "scales": [0.1, 0.01], "warmup": 3}
    assert config == {**given, "power": 2.0}


def test_every_option_goes_through_yaml_and_back() -> None:
    config = Config(seed=3)
    assert build(parse_layer(config.to_yaml(), "config.yaml")) == config


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--evaluation.batch_size 0", "evaluation.batch_size must be at least 1, got 0"),
        ("--evaluation.every 0", "evaluation.every must be at least 1, got 0"),
        ("--optim.weight_decay -1", "optim.weight_decay must be at least 0, got -1"),
        ("--optim.weight_decay nan", "optim.weight_decay must be a finite number, got nan"),
        ("--optim.head_weight_decay -1", "optim.head_weight_decay must be at least 0"),
        ("--optim.lr inf", "optim.lr must be a finite number, got inf"),
        ("--optim.momentum 1", "optim.momentum must be in [0, 1), got 1"),
        ("--head.scale 0", "head.scale must be greater than 0, got 0"),
        ("--head.sample_rate 0", "head.sample_rate must be in (0, 1], got 0"),
        ("--timeout_s -5", "timeout_s must be greater than 0, got -5"),
        ("--data.threads 1025", "data.threads must be in [1, 1024], got 1025"),
        ("--data.prefetch 257", "data.prefetch must be in [1, 256], got 257"),
        ("--data.augment.blur 1e9", "data.augment.blur must be in [0, 112], got 1000000000"),
        ("--data.augment.erase 113", "data.augment.erase must be in [0, 112], got 113"),
        ("--data.augment.rotate 181", "data.augment.rotate must be in [0, 180], got 181"),
        ("--data.path=", "--data.path is empty"),
        ("--output=", "--output is empty"),
        ("--seed -1", "seed must be at least 0, got -1"),
        ("--data.augment.flip 2", "data.augment.flip must be in [0, 1], got 2"),
        ("--optim.schedule {boundaries:[1],scales:[-1]}", "scales must be at least 0"),
        ("--optim.schedule.boundaries 5 --optim.schedule.scales -1", "scales must be at least 0"),
        ("--optim.schedule.boundaries 5", "1 boundaries but 0 scales"),
        ("--train.steps 1.5", "--train.steps is '1.5'; give a whole number"),
        ("--train.compile maybe", "--train.compile is 'maybe'; give true or false"),
        ("--train.precision fp8", "is 'fp8'; choose one of float32, tf32"),
        ("--config nosuch.yaml", "nosuch.yaml is neither a preset"),
        ("--head 7", "must be a mapping"),
    ],
)
def test_a_value_out_of_range_or_type_is_refused(
    capsys: pytest.CaptureFixture[str], words: str, message: str
) -> None:
    assert message in refused(capsys, "train", "synthetic", *words.split())


def test_an_empty_word_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--output is empty" in refused(capsys, "train", "synthetic", "--output", "")
    assert "an argument is empty" in refused(capsys, "train", "")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"data: {class_path: os.system}", "no option data.class_path"),
        (b"!!python/object/apply:os.system [touch x]", "is not YAML: could not determine"),
        (b"a: &a {b: *a}", "an alias that holds itself"),
        (b"optim: {lr: 1, lr: 2}", "sets lr twice in one section"),
        (b"optim: {lrr: 1}", "no option optim.lrr; did you mean optim.lr?"),
        (b"1: 2", "no option 1"),
        (b"optim: 3", "optim is a section; give its options below it"),
        (b"- a", "must be a mapping with the sections data"),
        (b"\xff\xfe", "is not UTF-8 text"),
        (b"data: {path: ''}", "data.path is ''; give text"),
        (b"data: {path: 12}", "data.path is 12; give text"),
        (b"train: {steps: true}", "train.steps is True; give a whole number"),
        (b"train: {steps: 1.5}", "train.steps is 1.5; give a whole number"),
        (b"train: {compile: 1}", "train.compile is 1; give true or false"),
        (b"train: {precision: [1]}", "choose one of float32"),
        (b"seed: 2026-13-01", "has a value that is not of its YAML type: month must be"),
        (b"seed: !!timestamp x", "has a value that is not of its YAML type"),
        (b"seed: !!bool maybe", "has a value that is not of its YAML type"),
        (b"seed: !!int ''", "has a value that is not of its YAML type"),
        (b"[" * 50_000, "nested too deeply"),
        (b" " * (1 << 21), "larger than 1 MiB"),
    ],
)
def test_a_file_that_is_no_config_is_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(content)
    line = refused(capsys, "train", str(path))
    assert message in line
    assert "mine.yaml" in line
    assert not (tmp_path / "x").exists()


def test_aliases_that_explode_are_refused_at_once(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    for n in range(1, 30):
        lines.append(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]")
    path = tmp_path / "laughs.yaml"
    path.write_text("\n".join([*lines, "evaluation: {sets: *a29}"]))
    start = time.process_time()
    with pytest.raises(ValueError, match="unfolds to more than 100,000 values"):
        read_layer(path)
    assert time.process_time() - start < 2
    few = parse_layer("start: {names: &x [a, b]}\nevaluation: {sets: *x}\n", "few")
    assert few["evaluation.sets"] == ["a", "b"]


def test_the_shared_aliases_are_refused() -> None:
    with pytest.raises(ValueError, match="unfolds to more"):
        read_layer(shared_data("cases/hostile/yaml_laughs/y_laughs.yaml"))


def test_a_python_config_says_what_to_do(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "ms1mv3_r50.py"
    path.write_text("raise SystemExit('it was run')")
    line = refused(capsys, "train", str(path))
    assert "ms1mv3_r50.py is a Python config, as arcface_torch has them, and is not run" in line
    assert f"`facescale import config {path} OUT.yaml`" in line
    assert "run folder" in refused(capsys, "train", str(folder_of_a_run(tmp_path)))


def folder_of_a_run(tmp_path: Path) -> Path:
    (tmp_path / "config.yaml").touch()
    return tmp_path


def test_a_parser_reads_true_and_false() -> None:
    parser = Parser("x", "x", "")
    parser.add_argument("--flip", type=bool)
    assert parser.parse(["--flip", "false"]).flip is False
    assert parser.parse(["--flip", "true"]).flip is True
    with pytest.raises(ValueError, match="--flip"):
        parser.parse(["--flip", "perhaps"])


@pytest.mark.parametrize(
    ("value", "hint", "expected"),
    [
        ("1_000", int, 1000),
        ("1e-3", float, 0.001),
        (3, float, 3.0),
        ("TRUE", bool, True),
        ("null", int | None, None),
        ("lfw", list[str], ["lfw"]),
    ],
)
def test_values_become_what_the_config_asks_for(value: Any, hint: Any, expected: Any) -> None:
    assert convert(value, hint, "name") == expected


def test_no_command_takes_a_number_that_is_not_finite() -> None:
    tried = 0
    for command in cli.COMMANDS:
        module = import_module(f"facescale.cli.{command.replace(' ', '_')}")
        parser = Parser(command, "", "")
        module.add_options(parser)
        for action in parser._actions:
            if action.type is float:
                tried += 1
                for word in ("nan", "-inf", "1e999", "x"):
                    with pytest.raises(ValueError, match=f"must be a finite number, got '{word}'"):
                        parser.parse([f"{action.option_strings[0]}={word}"])
    assert tried > 10
