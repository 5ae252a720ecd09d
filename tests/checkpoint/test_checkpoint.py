"""What a checkpoint holds, as plain files."""

from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import facescale
from facescale.checkpoint import tensors
from facescale.cli import main
from facescale.cli.models import open_model
from facescale.training import build
from facescale.training.resume import save
from runs import CPU, losses, small_run


@pytest.mark.usefixtures("tiny_y1")
def test_a_checkpoint_unpacks_into_plain_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensors, "PIECE_ROWS", 7)
    state = build(small_run(), CPU)
    losses(state, 2)
    save(state, tmp_path)
    main(["unpack", str(tmp_path), "--centres", "--rows", "20"])
    names = ["model.safetensors", *(f"centres-0000{n}-of-00003.safetensors" for n in (1, 2, 3))]
    paths = [tmp_path / "step-00000002" / name for name in names]
    assert capsys.readouterr().out.splitlines() == [str(path) for path in paths]
    backbone = facescale.load_backbone(paths[0])
    for name, value in state.backbone.state_dict().items():
        assert torch.equal(backbone.state_dict()[name], value), name
    centres = torch.cat([load_file(path)["centres"] for path in paths[1:]])
    assert torch.equal(centres, state.head.centres.full())
    with safe_open(paths[2], "pt") as piece:
        assert piece.metadata() == {"first_class": "20", "num_classes": "50"}


def test_nothing_to_unpack_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["unpack", str(tmp_path)])
    assert "neither a checkpoint nor a run that has one" in capsys.readouterr().err


def options(model: Path) -> Any:
    """What the command line gives for a model and nothing else."""
    return Namespace(model=str(model), backbone=None, family=None)


@pytest.mark.usefixtures("tiny_y1")
def test_a_run_in_progress_is_taken_from_its_last_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = build(small_run(), CPU)
    losses(state, 2)
    save(state, tmp_path)
    for place in (tmp_path, tmp_path / "checkpoints/step-00000002"):
        backbone = open_model(options(place))
        said = capsys.readouterr().err
        assert ("taking the backbone of" in said) == (place == tmp_path)
        for name, value in state.backbone.state_dict().items():
            assert torch.equal(backbone.state_dict()[name], value), name
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="neither a checkpoint nor a run that has one"):
        open_model(options(tmp_path / "empty"))


@pytest.mark.usefixtures("tiny_y1")
def test_a_bad_run_json_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = build(small_run(), CPU)
    save(state, tmp_path)
    (tmp_path / "checkpoints/step-00000000/run.json").write_text('{"format": 3, "step": -1}')
    with pytest.raises(SystemExit):
        main(["export", str(tmp_path), str(tmp_path / "x.onnx")])
    said = capsys.readouterr().err
    assert "is damaged: run.json differs from its checksum; name another checkpoint" in said
    assert said.count("\n") == 1
