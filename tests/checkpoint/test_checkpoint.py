"""What a checkpoint holds, as plain files."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import facescale
from facescale.checkpoint import tensors
from facescale.cli import main
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
