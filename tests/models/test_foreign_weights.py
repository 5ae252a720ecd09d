"""Weights of other projects: wrapped, prefixed, without a name, damaged or hostile."""

import re
import resource
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from facescale import backbones
from facescale.backbones import build
from facescale.cli import main
from facescale.config import BackboneConfig
from facescale.models.identify import identify
from facescale.models.mxnet import mxnet_names
from facescale.models.torchfile import beside
from facescale.models.weights import SPEC, load_backbone, load_weights_, save_backbone
from facescale.training import build as build_run
from runs import CPU, small_run


def theirs(**choices: Any) -> backbones.Backbone:
    """A network as arcface_torch saves it."""
    random = torch.Generator().manual_seed(1)
    return build("y1", family="arcface_torch", generator=random, **choices).eval()


def assert_loaded(path: Path, saved: backbones.Backbone) -> None:
    found = load_backbone(path)
    assert found.spec == saved.spec
    for name, value in saved.state_dict().items():
        assert torch.equal(found.state_dict()[name], value), name


def prefixed(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {f"{prefix}{name}": value for name, value in tensors.items()}


@pytest.mark.usefixtures("tiny_y1")
@pytest.mark.parametrize(
    ("wrapper", "prefix"),
    [
        (None, ""),
        (None, "module."),
        ("state_dict", "model."),
        ("state_dict", "module.net."),
        ("state_dict_backbone", "backbone."),
        ("model", ""),
    ],
)
def test_wrappers_and_prefixes_are_understood(
    tmp_path: Path, wrapper: str | None, prefix: str
) -> None:
    saved = theirs()
    tensors = OrderedDict(prefixed(saved.state_dict(), prefix))
    content: Any = tensors
    if wrapper is not None:
        content = {"epoch": 3, wrapper: tensors, "state_optimizer": {"lr": 0.1}}
    torch.save(content, tmp_path / "model.pt")
    assert_loaded(tmp_path / "model.pt", saved)


@pytest.mark.usefixtures("tiny_y1")
def test_a_head_beside_the_network_is_left_out(tmp_path: Path) -> None:
    saved = theirs()
    content = {**prefixed(saved.state_dict(), "model."), "head.kernel": torch.ones(512, 10)}
    torch.save({"state_dict": content}, tmp_path / "model.pth")
    assert_loaded(tmp_path / "model.pth", saved)


@pytest.mark.parametrize(
    ("name", "choices"),
    [
        ("r18", {}),
        ("r18_half", {"embedding_dim": 100, "image_size": 56}),
        ("r50", {"embedding_dim": 256}),
        ("y2", {"neck": "E", "image_size": 28}),
    ],
)
def test_the_network_is_told_by_its_tensors(name: str, choices: dict[str, Any]) -> None:
    with torch.device("meta"):
        network = build(name, family="arcface_torch", **choices)
        converted = build(name, family="mxnet", **choices)
    shapes = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    found = identify(shapes, Path("model.pt"))
    assert {key: network.spec[key] for key in found} == found
    found = identify(mxnet_names(converted), Path("x.params"), None, "mxnet", mxnet_names)
    assert {key: converted.spec[key] for key in found} == found


def test_neck_gdc_tells_its_family(tmp_path: Path) -> None:
    saved = build("y1", family="mxnet").eval()
    torch.save(saved.state_dict(), tmp_path / "model.pt")
    assert_loaded(tmp_path / "model.pt", saved)


@pytest.mark.usefixtures("tiny_y1")
def test_a_run_that_starts_from_a_pt_takes_its_constants(tmp_path: Path) -> None:
    saved = theirs(embedding_dim=16)
    torch.save(saved.state_dict(), tmp_path / "model.pt")
    backbone = BackboneConfig(name="y1", embedding_dim=16, weights=str(tmp_path / "model.pt"))
    started = build_run(small_run(backbone=backbone), CPU).backbone
    assert started.spec["family"] == "arcface_torch"
    assert torch.equal(started.state_dict()["conv.weight"], saved.state_dict()["conv.weight"])


def test_weights_of_another_family_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_backbone(path, theirs())
    with pytest.raises(ValueError, match="trained with family 'arcface_torch', this network has"):
        load_weights_(build("y1", family="mxnet"), path)
    with pytest.raises(ValueError, match="its family is 'arcface_torch', not mxnet"):
        load_backbone(path, family="mxnet")


def test_a_name_from_a_file_is_fit_for_a_terminal() -> None:
    tensors = prefixed(theirs().state_dict(), "model.") | {"\x1b]0;head\n": torch.ones(1)}
    assert beside(tensors) == ["?]0;head?"]


def refused(path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line with which the command refuses a file."""
    with pytest.raises(SystemExit):
        main(["export", str(path), str(path.with_suffix(".onnx"))])
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert len(said) < 500
    assert "weights_only" not in said
    assert str(path) in said
    return said


class Network(nn.Module):
    pass


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (Network(), r"a Python object \(\S+Network\), which could run code; save the network's"),
        ({0: torch.ones(2)}, "0 is not the name of a tensor"),
        ({"epoch": 3}, "epoch is not a plain tensor"),
        ([torch.ones(2)], "holds a list, not a state dict"),
        ({"weight": torch.ones(2).to_sparse()}, "weight is not a plain tensor"),
        ({"weight": torch.ones(2, device="meta")}, "weight is not a plain tensor"),
        (
            {"input_layer.0.weight": torch.ones(1).expand(1 << 20, 1 << 20, 3, 3)},
            "input_layer.0.weight is not a plain tensor",
        ),
        ({f"{n}.weight": torch.ones(2) for n in range(999)}, "does not say which network"),
    ],
)
def test_what_is_no_state_dict_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: Any, message: str
) -> None:
    torch.save(content, tmp_path / "model.pt")
    assert re.search(message, refused(tmp_path / "model.pt", capsys))


def test_a_wrapper_that_holds_itself_ends(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content: dict[str, Any] = {}
    content["state_dict"] = content
    torch.save(content, tmp_path / "model.pt")
    assert "is not a plain tensor" in refused(tmp_path / "model.pt", capsys)


def test_torchscript_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, but such files are about
        traced: Any = torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2))
        traced.save(tmp_path / "model.pt")
    assert "is a TorchScript archive; save" in refused(tmp_path / "model.pt", capsys)


def test_compressed_entries_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"weight": torch.zeros(1 << 20)}, tmp_path / "plain.pt")
    path = tmp_path / "bomb.pt"
    with (
        zipfile.ZipFile(tmp_path / "plain.pt") as plain,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for entry in plain.infolist():
            bomb.writestr(entry.filename, plain.read(entry))
    assert path.stat().st_size < 1 << 14
    assert "its entries are compressed" in refused(path, capsys)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ('{"name": "r50", "embedding_dim": 60000}', "weights of another network than it says"),
        ('{"name": "r50", "embedding_dim": 2000000000}', "another network than it says"),
        (f'{{"name": "r50", "embedding_dim": {1 << 61}}}', "cannot be built"),
        ('{"name": "y1", "embedding_dim": "8"}', "says embedding_dim '8'"),
        ('{"name": "y1", "embedding_dim": true}', "says embedding_dim True"),
        ('{"name": "y1", "foo": 1}', "has 'foo'"),
        ('{"name": "y9"}', "unknown backbone 'y9'"),
        ('{"name": ["y1"]}', r"says name \['y1'\]"),
        ("{}", "names no network"),
        ("null", "is None"),
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
    ],
)
def test_an_ill_typed_spec_is_one_line_and_no_memory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], spec: str, message: str
) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"x": torch.ones(1)}, path, {SPEC: spec})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert re.search(message, refused(path, capsys))
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 200_000  # KiB; at 60,000 dimensions the weights take 6 GB
