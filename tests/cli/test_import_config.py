"""arcface_torch's configs become YAML, without being run, and say what is lost."""

from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest
import yaml

from facescale.cli import main
from facescale.cli.layers import build, parse_layer
from facescale.config import PRESETS

WEBFACE = """
from easydict import EasyDict as edict

# a comment
config = edict()
config.margin_list = (1.0, 0.0, 0.4)
config.network = "r100"
config.resume = False
config.output = None
config.embedding_size = 512
config.sample_rate = 0.2
config.fp16 = True
config.momentum = 0.9
config.weight_decay = 5e-4
config.batch_size = 128
config.lr = 0.2
config.verbose = 10000
config.dali = False
config.rec = "/data/WebFace42M"
config.num_classes = 2059906
config.num_image = 42474557
config.num_epoch = 20
config.warmup_epoch = config.num_epoch // 10
config.val_targets = ["lfw", "cfp_fp", "agedb_30"]
"""
VIT = """
config = edict()
config.margin_list = (1.0, 0.0, 0.4)
config.network = "vit_b_dp005_mask_005"
config.sample_rate = 0.3
config.fp16 = True
config.weight_decay = 0.1
config.batch_size = 256
config.gradient_acc = 12
config.optimizer = "adamw"
config.lr = 0.001
config.num_classes = 2059906
config.num_image = 42474557
config.num_epoch = 40
config.warmup_epoch = config.num_epoch // 10
config.val_targets = []
"""
MS1MV3 = """
config = edict()
config.margin_list = (1.0, 0.5, 0.0)
config.network = "r50"
config.fp16 = True
config.num_classes = 93431
config.num_image = 5179510
config.num_epoch = 20
config.warmup_epoch = 0
config.val_targets = ["lfw", "cfp_fp", "agedb_30"]
"""
NOISY = """
config = edict()
config.margin_list = (1.0, 0.0, 0.4)
config.network = "r50"
config.sample_rate = 0.1
config.interclass_filtering_threshold = 0.4
config.fp16 = True
config.num_classes = 617970
config.num_image = 12720066
config.num_epoch = 20
config.warmup_epoch = config.num_epoch // 10
config.val_targets = []
"""


def convert(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, *more: str
) -> tuple[dict[str, Any], list[str]]:
    """Options by section, and the notes."""
    source = tmp_path / "theirs.py"
    source.write_text(text)
    main(["import", "config", str(source), *more])
    out, err = capsys.readouterr()
    build(parse_layer(out, "out"))
    return yaml.safe_load(out) or {}, err.splitlines()


@pytest.mark.parametrize(
    ("text", "gpus", "preset"),
    [
        (WEBFACE, 16, "wf42m_pfc02_r100_16gpus"),
        (VIT, 8, "wf42m_pfc03_vit_b"),
        (MS1MV3, 8, "ms1mv3_r50"),
        (NOISY, 8, "wf12m_flip_pfc01_filter04_r50"),
    ],
)
def test_the_presets_are_what_their_configs_become(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, gpus: int, preset: str
) -> None:
    values, _ = convert(tmp_path, capsys, text, "--gpus", str(gpus))
    assert values.pop("seed") == 2048
    values["data"].pop("path", None)
    if "evaluation" in values and text == MS1MV3:
        assert values["evaluation"]["every"] == 2000
    assert values == yaml.safe_load((PRESETS / f"{preset}.yaml").read_text())


def test_what_has_no_counterpart_is_said_line_by_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = """config = edict()
config.margin_list = (1.0, 0.5, 0.35)
config.momentum = 0.8
config.resume = True
config.wandb_key = "secret"
config.nosuch = {"a": 1}
config.other = 3
config.lr_func = lambda epoch: 0.1
for i in range(3): pass
config.gradient_acc = 4
config.using_wandb = True
config.network = "r2060"
"""
    values, notes = convert(tmp_path, capsys, text)
    assert values["head"]["margin"] == {"m2": 0.0, "m3": 0.35}
    said = "\n".join(notes)
    for expected in (
        "line 2: margin_list has m3, so arcface_torch ignores m1 = 1 and m2 = 0.5",
        "line 3: config.momentum = 0.8: arcface_torch ignores it and takes 0.9",
        "line 4: config.resume = True: give --resume",
        "line 5: config.wandb_key = ...: wandb takes its own settings",
        "line 6: config.nosuch is not read: not a plain value",
        "line 7: config.other = 3: no counterpart",
        "line 8: config.lr_func is not read: a function; set optim.schedule.kind",
        "line 9: not read: for i in range(3):",
        "line 10: config.gradient_acc = 4: arcface_torch adds up the gradients, train.accumulate",
        "config.network = 'r2060': there is no such network here",
    ):
        assert f"theirs.py: {expected}" in said
    assert "secret" not in said
    assert len(notes) == 10


def test_arcface_torchs_defaults_need_no_word(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = """config = edict()
config.network = "r50"
config.num_workers = 0
config.wandb_key = "XXXX"
config.wandb_entity = "entity"
config.suffix_run_name = None
config.using_wandb = False
config.save_artifacts = False
"""
    values, notes = convert(tmp_path, capsys, text)
    assert notes == []
    assert values["data"] == {"threads": 1}


def test_the_margin_of_older_configs_is_their_loss(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for loss, margin in (("cosface", {"m2": 0.0, "m3": 0.4}), ("arcface", {"gradient": ANY})):
        text = f"config = edict()\nconfig.loss = {loss!r}\n"
        values, notes = convert(tmp_path, capsys, text)
        assert values["head"]["margin"] == margin
        assert len(notes) == 1
        assert f"line 2: config.loss = {loss!r}: margin_list replaced it" in notes[0]


@pytest.mark.parametrize(
    "statement",
    [
        "config = edict({'lr': 0.3})",
        "config = edict(lr=0.3)",
        "from configs.wf42m import config",
        "from .ms1mv3 import config as base",
        "from wf42m import *",
    ],
)
def test_values_from_elsewhere_are_said_to_be_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], statement: str
) -> None:
    _, notes = convert(tmp_path, capsys, f"{statement}\nconfig.batch_size = 64\n")
    assert notes == [f"theirs.py: line 1: not read: {statement}"]


@pytest.mark.parametrize(
    "statement", ["from configs.base import config", "from .base import *", "config = edict()"]
)
def test_the_base_of_all_configs_needs_no_word(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], statement: str
) -> None:
    _, notes = convert(tmp_path, capsys, f"{statement}\nconfig.batch_size = 64\n")
    assert notes == []


def test_nothing_in_the_file_is_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trap = tmp_path / "trap"
    text = f"""import pathlib
config = edict()
config.lr = pathlib.Path({str(trap)!r}).write_text("run")
config.batch_size = 64
"""
    values, notes = convert(tmp_path, capsys, text)
    assert values["train"]["batch_size"] == 64
    assert "line 3: config.lr is not read" in notes[0]
    assert not trap.exists()


def test_the_yaml_is_written_and_trains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "theirs.py"
    source.write_text('config = edict()\nconfig.rec = "synthetic"\nconfig.num_classes = 30000\n')
    out = tmp_path / "ours.yaml"
    main(["import", "config", str(source), str(out)])
    assert capsys.readouterr().out.strip() == str(out)
    with pytest.raises(SystemExit):
        main(["train", str(out), "--print_config"])
    config = yaml.safe_load(capsys.readouterr().out)
    assert config["data"]["path"] == "synthetic"
    assert config["optim"]["clip_norm"] == 5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("config = (", "is not a Python file"),
        ("x = 3", "sets no config.NAME; it is not a config of arcface_torch"),
        ("#" * (1 << 21), "is larger than 1 MiB; a config is a short file"),
        ("config = edict()\nconfig.margin_list = 3", "not of the kind that is expected"),
        ("config = edict()\nconfig.margin_list = (1.0, 0.5)", "theirs.py: a value is not of the"),
        ("config = edict()\nconfig.sample_rate = 'all'", "theirs.py: a value is not of the"),
        (f"config = edict()\nconfig.lr = {'+'.join(['0.1'] * 2000)}", "is not a Python file"),
        ("config = edict()\nconfig.lr = 'fast'", "optim.lr is 'fast'; give a number"),
        ("config = edict()\nconfig.batch_size = 0", "train.batch_size must be at least 1, got 0"),
    ],
)
def test_a_config_that_is_none_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    with pytest.raises(SystemExit):
        convert(tmp_path, capsys, text)
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
