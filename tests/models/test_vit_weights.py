"""arcface_torch's ViTs give arcface_torch's embeddings."""

from pathlib import Path

import pytest
import torch
from test_adaface_weights import adaface_value
from test_mxnet import error, golden, weights

from facescale.backbones import build
from facescale.models.identify import identify, own_names
from facescale.models.weights import load_backbone


@pytest.mark.parametrize("name", ["vit_t", pytest.param("vit_s", marks=pytest.mark.slow)])
def test_arcface_torchs_weights_give_arcface_torchs_embeddings(tmp_path: Path, name: str) -> None:
    answers = golden(f"arcface_torch_{name}")
    state = weights(answers["state_dict"], answers["seed"], adaface_value)
    torch.save({key: torch.from_numpy(array) for key, array in state}, tmp_path / "model.pt")
    backbone = load_backbone(tmp_path / "model.pt")
    assert backbone.name == name
    trainable = sum(p.numel() for p in backbone.parameters() if p.requires_grad)
    assert trainable == answers["trainable"]
    assert error(backbone, answers) < 1e-5


def test_the_network_is_told_by_its_tensors() -> None:
    with torch.device("meta"):
        backbone = build("vit_b", embedding_dim=100)
    found = identify(own_names(backbone), Path("model.pt"))
    assert found == backbone.spec
