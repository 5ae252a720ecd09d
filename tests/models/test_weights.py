"""Backbones go into files and come back; the peers' files are read; wrong ones are named."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from facescale import backbones
from facescale.models.weights import load_backbone, load_weights_, save_backbone
from shared_data import shared_data

PIXELS = torch.randint(0, 256, (2, 3, 112, 112), generator=torch.Generator().manual_seed(0))


def fresh(seed: int = 0, **choices: str) -> backbones.Backbone:
    generator = torch.Generator().manual_seed(seed)
    return backbones.build("y1", generator=generator, **choices).eval()  # type: ignore[arg-type]


def embed(backbone: backbones.Backbone) -> torch.Tensor:
    with torch.inference_mode():
        return backbone(PIXELS)  # type: ignore[no-any-return]


def test_a_saved_backbone_is_rebuilt_with_all_its_choices(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    backbone = backbones.build("y1", 32, "E", "arcface_torch", 0.2, image_size=56).eval()
    save_backbone(path, backbone.to(memory_format=torch.channels_last))  # type: ignore[call-overload]
    again = load_backbone(path)
    assert again.spec == backbone.spec
    assert torch.equal(embed(again), embed(backbone))
    assert not list(tmp_path.glob("*.partial"))


def test_weights_of_arcface_torch_load_by_their_keys(tmp_path: Path) -> None:
    theirs = fresh(1, family="arcface_torch")
    torch.save(theirs.state_dict(), tmp_path / "model.pt")
    ours = fresh(2, family="arcface_torch")
    load_weights_(ours, tmp_path / "model.pt")
    assert torch.equal(embed(ours), embed(theirs))


def test_weights_of_mxnet_load(tmp_path: Path) -> None:
    backbone = fresh()
    before = embed(backbone)
    load_weights_(backbone, shared_data("golden/mxnet/y1-0000.params"))
    assert not torch.equal(embed(backbone), before)


def test_wrong_files_are_named(tmp_path: Path) -> None:
    backbone = fresh()
    with pytest.raises(FileNotFoundError, match=r"none\.pt is not a file"):
        load_weights_(backbone, tmp_path / "none.pt")
    (tmp_path / "torn.pt").write_bytes(b"PK torn")
    with pytest.raises(ValueError, match=r"torn\.pt cannot be read as weights"):
        load_weights_(backbone, tmp_path / "torn.pt")
    (tmp_path / "torn.safetensors").write_bytes(b"torn")
    with pytest.raises(ValueError, match=r"torn\.safetensors is not a safetensors file"):
        load_backbone(tmp_path / "torn.safetensors")
    (tmp_path / "model.h5").write_bytes(b"")
    with pytest.raises(ValueError, match=r"weights are \.safetensors, \.pt, \.pth, \.ckpt or"):
        load_weights_(backbone, tmp_path / "model.h5")
    save_file({"weight": torch.ones(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="holds weights of another network"):
        load_weights_(backbone, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="does not say which network it holds"):
        load_backbone(tmp_path / "other.safetensors")


class Evil:
    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.victim,)


def test_a_pt_that_would_run_code_is_refused_and_not_run(tmp_path: Path) -> None:
    torch.save({"weight": Evil(tmp_path / "victim")}, tmp_path / "evil.pt")
    with pytest.raises(ValueError, match=r"evil\.pt cannot be read as weights"):
        load_weights_(fresh(), tmp_path / "evil.pt")
    assert not (tmp_path / "victim").exists()
