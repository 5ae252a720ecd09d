"""`facescale import weights`: what others saved becomes a model.safetensors with its network."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from test_adaface_weights import TOLERANCE, adaface_value, ir_18
from test_mxnet import error, golden, weights

from facescale.backbones import build
from facescale.cli import main
from facescale.models.weights import load_backbone
from shared_data import shared_data


def imported(tmp_path: Path, file: Path) -> Any:
    main(["import", "weights", str(file), str(tmp_path / "model.safetensors")])
    return load_backbone(tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    ("golden_name", "ours"),
    [("ir_18", "r18"), pytest.param("ir_101", "r100", marks=pytest.mark.slow)],
)
def test_adafaces_file_answers_as_adaface(
    tmp_path: Path, golden_name: str, ours: str, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = golden(f"adaface_{golden_name}")
    state = weights(answers["state_dict"], answers["seed"], adaface_value)
    tensors = {f"model.{key}": torch.from_numpy(array) for key, array in state}
    content = {"state_dict": {**tensors, "head.kernel": torch.zeros(1)}, "epoch": 1}
    torch.save(content, tmp_path / "adaface.ckpt")
    backbone = imported(tmp_path, tmp_path / "adaface.ckpt")
    assert (backbone.name, backbone.spec["family"]) == (ours, "arcface_torch")
    assert error(backbone, answers) < TOLERANCE
    said = capsys.readouterr().out
    assert f"{ours}, embedding_dim 512, neck E, family arcface_torch" in said
    assert "left out, not of the network: head.kernel" in said


@pytest.mark.parametrize(
    ("wrapper", "prefix", "suffix"),
    [
        (None, "", ".pt"),
        (None, "module.", ".pth"),
        ("state_dict", "", ".pt"),
        ("state_dict_backbone", "", ".pt"),
        ("state_dict", "model.", ".ckpt"),
        (None, "net.", ".safetensors"),
    ],
)
@pytest.mark.usefixtures("tiny_y1")
def test_arcface_torchs_files_are_taken_in_every_wrapping(
    tmp_path: Path, wrapper: str | None, prefix: str, suffix: str
) -> None:
    network = build("y1", family="arcface_torch", embedding_dim=256)
    tensors = {f"{prefix}{name}": value for name, value in network.state_dict().items()}
    file = tmp_path / f"theirs{suffix}"
    if suffix == ".safetensors":
        save_file(tensors, file)
    else:
        torch.save({wrapper: tensors} if wrapper else tensors, file)
    found = imported(tmp_path, file)
    assert found.spec == network.spec
    assert all(torch.equal(found.state_dict()[k], v) for k, v in network.state_dict().items())


def test_mxnets_file_answers_as_mxnet(tmp_path: Path) -> None:
    backbone = imported(tmp_path, shared_data("golden/mxnet/y1-0000.params"))
    assert (backbone.name, backbone.spec["family"]) == ("y1", "mxnet")
    assert error(backbone, golden("y1")) < 1e-4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"body.0.res_layer.se_block.fc1.weight": (4, 64, 1, 1)},
            "0.se.fc1.weight is unexp",
        ),
        ({"output_layer.3.weight": (512, 100)}, "fc.weight has shape"),
    ],
)
def test_what_cannot_be_loaded_is_named_in_one_line(
    tmp_path: Path, change: Any, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    changed = {name: torch.ones(shape) for name, shape in change.items()}
    torch.save(ir_18(False) | changed, tmp_path / "x.ckpt")
    with pytest.raises(SystemExit):
        imported(tmp_path, tmp_path / "x.ckpt")
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "the nearest is r18, where" in said
    assert message in said
    assert not (tmp_path / "model.safetensors").exists()
    with pytest.raises(SystemExit):
        main(["import", "weights", str(tmp_path / "x.ckpt"), "model.pt"])
    assert "give a name that ends in .safetensors" in capsys.readouterr().err


def test_random_numbers_are_not_of_a_network(tmp_path: Path) -> None:
    torch.save({"a": torch.from_numpy(np.ones(3))}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match="none that is known"):
        load_backbone(tmp_path / "x.pt")
