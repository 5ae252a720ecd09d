"""The exported graph, run by onnxruntime as InsightFace would, answers as torch does."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from facescale import backbones, save_backbone
from facescale.backbones import Backbone
from facescale.cli import main
from facescale.data.pairs import load_pairs
from facescale.models import onnx as export
from facescale.models.onnx import export_onnx
from records import jpeg
from shared_data import shared_data

onnx = pytest.importorskip("onnx", reason="it comes with the extra 'export'")
ort = pytest.importorskip("onnxruntime", reason="it comes with the extra 'export'")

pytestmark = pytest.mark.usefixtures("short_networks")


def lived_in(**spec: Any) -> Backbone:
    """In eval mode, with running statistics of noise."""
    backbone = backbones.build(**spec, generator=torch.Generator().manual_seed(1))
    for module in backbone.modules():
        if isinstance(module, _BatchNorm):
            module.momentum = 1.0
    with torch.no_grad():
        backbone.train()(torch.from_numpy(noise(8)))
    return backbone.eval()


def noise(count: int) -> NDArray[np.uint8]:
    pixels = np.random.default_rng(0).integers(0, 256, (count, 3, 112, 112))
    return pixels.astype(np.uint8)


def as_insightface(path: Path, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """What `ArcFaceONNX.get_feat` does: its own normalisation, where the graph has none."""
    first = [node.name for node in onnx.load(path).graph.node[:8]]
    assert not any(name.lower().startswith(("sub", "_minus", "mul", "_mul")) for name in first)
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    (taken,) = session.get_inputs()
    blob = (pixels.astype(np.float32) - 127.5) / 127.5
    answer: NDArray[np.float32] = session.run(None, {taken.name: blob})[0]
    return answer


def agree(path: Path, backbone: Backbone, pixels: NDArray[np.uint8]) -> None:
    with torch.no_grad():
        truth = backbone(torch.from_numpy(pixels)).numpy()
    answer = as_insightface(path, pixels)
    np.testing.assert_allclose(answer, truth, rtol=0, atol=1e-4 * np.abs(truth).max())


@pytest.mark.parametrize(
    "spec",
    [
        {"name": "r18_half"},  # family mxnet divides by 128
        {"name": "r18_half", "neck": "GDC", "family": "arcface_torch", "image_size": 56},
        {"name": "mbf"},
    ],
    ids=str,
)
def test_it_answers_as_torch_does_for_any_number_of_faces(
    tmp_path: Path, spec: dict[str, Any]
) -> None:
    backbone, path = lived_in(**spec), tmp_path / "model.onnx"
    assert export_onnx(backbone, path) < 1e-4
    for count in (1, 3):
        agree(path, backbone, noise(count))
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]


def test_faces_of_lfw_too(tmp_path: Path) -> None:
    lfw = load_pairs(shared_data("lfw.bin"))
    backbone, path = lived_in(name="y1"), tmp_path / "model.onnx"
    export_onnx(backbone, path)
    agree(path, backbone, lfw.decode(range(6)).transpose(0, 3, 1, 2))


def test_the_command_says_what_the_graph_takes_and_the_file_does_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_backbone(tmp_path / "model.safetensors", lived_in(name="y1"))
    path = tmp_path / "y1.onnx"
    main(["export", str(tmp_path), str(path)])
    said = capsys.readouterr().out
    assert said.startswith(f"{path}\n")
    assert "(pixel - 127.5) / 127.5" in said
    graph = onnx.load(path)
    onnx.checker.check_model(graph, full_check=True)
    facts = {entry.key: entry.value for entry in graph.metadata_props}
    assert json.loads(facts["facescale.backbone"])["name"] == "y1"
    assert (facts["input_mean"], facts["input_std"]) == ("127.5", "127.5")
    assert [opset.version for opset in graph.opset_import if opset.domain == ""] == [20]
    assert not any(node.op_type == "BatchNormalization" for node in graph.graph.node)


@pytest.mark.usefixtures("tiny_y1")
@pytest.mark.parametrize(("opset", "ir_version"), [(15, 8), (18, 8), (20, 9)])
def test_an_opset_is_honoured_with_the_oldest_format_that_has_it(
    tmp_path: Path, opset: int, ir_version: int, caplog: pytest.LogCaptureFixture
) -> None:
    backbone = lived_in(name="y1")
    export_onnx(backbone, tmp_path / "model.onnx", opset)
    graph = onnx.load(tmp_path / "model.onnx")
    assert [(entry.domain, entry.version) for entry in graph.opset_import] == [("", opset)]
    assert graph.ir_version == ir_version  # onnxruntime 1.16 reads up to 9
    assert not [record for record in caplog.records if record.levelname != "DEBUG"]
    agree(tmp_path / "model.onnx", backbone, noise(2))


@pytest.mark.usefixtures("tiny_y1")
@pytest.mark.parametrize("opset", [-1, 0, 11, 14, 99])
def test_another_opset_is_refused_at_once(tmp_path: Path, opset: int) -> None:
    with pytest.raises(ValueError, match=rf"opset must be from 15 to \d+, got {opset}"):
        export_onnx(lived_in(name="y1"), tmp_path / "model.onnx", opset)
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("tiny_y1")
def test_an_opset_that_torch_did_not_write_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "LOWEST_OPSET", 14)
    with pytest.raises(ValueError, match="cannot be written in opset 14; choose 18"):
        export_onnx(lived_in(name="y1"), tmp_path / "model.onnx", 14)
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("tiny_y1")
def test_a_graph_that_answers_otherwise_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "MEAN", 100.0)  # not what the network takes
    with pytest.raises(ArithmeticError, match="differs from torch"):
        export_onnx(lived_in(name="y1"), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_without_the_extra_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "find_spec", lambda name: None if name == "onnx" else name)
    with pytest.raises(ImportError, match=r"no onnx; they come with .*facescale\[export\]"):
        export_onnx(lived_in(name="y1"), tmp_path / "model.onnx")


@pytest.mark.parametrize("spec", [{"name": "y1", "image_size": 28}, {"name": "vit_t"}], ids=str)
def test_half_precision_answers_nearly_the_same_for_any_number_of_faces(
    tmp_path: Path, spec: dict[str, Any]
) -> None:
    backbone, path = lived_in(**spec), tmp_path / "model.onnx"
    assert 0 < export_onnx(backbone, path, dtype="float16") < 0.02
    weights = onnx.load(path).graph.initializer
    assert {w.data_type for w in weights if len(w.dims) > 1} == {onnx.TensorProto.FLOAT16}
    for count in (1, 3):
        with torch.no_grad():
            truth = backbone(torch.from_numpy(noise(count))).numpy()
        answer = as_insightface(path, noise(count))
        assert answer.dtype == np.float32
        np.testing.assert_allclose(answer, truth, rtol=0, atol=0.02 * np.abs(truth).max())


def test_eight_bits_find_their_ranges_on_faces(tmp_path: Path) -> None:
    backbone, path = lived_in(name="y1"), tmp_path / "model.onnx"
    # the differences between images of noise are smaller than the steps of 8 bits
    pixels = noise(8)[:, :, ::28, ::28].repeat(28, axis=2).repeat(28, axis=3)
    difference = export_onnx(backbone, path, dtype="int8", faces=pixels.transpose(0, 2, 3, 1))
    assert 1e-4 < difference < 0.3
    graph = onnx.load(path)
    assert onnx.TensorProto.INT8 in {weight.data_type for weight in graph.graph.initializer}
    assert [(e.domain, e.version) for e in graph.opset_import if not e.domain] == [("", 20)]
    with torch.no_grad():
        truth = functional.normalize(backbone(torch.from_numpy(pixels))).numpy()
    answer = as_insightface(path, pixels)
    cosines = (answer * truth).sum(axis=1) / np.linalg.norm(answer, axis=1)
    assert cosines.min() > 0.97
    with pytest.raises(ValueError, match="int8 needs faces"):
        export_onnx(backbone, path, dtype="int8")


@pytest.mark.usefixtures("tiny_y1")
def test_a_format_is_honoured_or_refused(tmp_path: Path) -> None:
    backbone, path = lived_in(name="y1"), tmp_path / "model.onnx"
    export_onnx(backbone, path, 18, ir_version=10)
    assert onnx.load(path).ir_version == 10
    with pytest.raises(ValueError, match=r"ir_version must be from 9 to \d+ here, got 8"):
        export_onnx(backbone, path, 20, ir_version=8)


def test_what_eight_bits_lose_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    random = np.random.default_rng(0)
    pairs = ([jpeg(random) for _ in range(40)], [place % 2 == 0 for place in range(20)])
    (tmp_path / "some.bin").write_bytes(pickle.dumps(pairs))
    save_backbone(tmp_path / "model.safetensors", lived_in(name="y1", image_size=28))
    words = ["export", str(tmp_path), str(tmp_path / "x.onnx"), "--dtype", "int8"]
    main([*words, "--measure", str(tmp_path / "some.bin")])
    said = capsys.readouterr().out
    assert "ONNX, int8" in said
    assert "accuracy lost: " in said
    assert 0.9 < float(said.split("lowest ")[1].split(",")[0]) < 0.99999
    with pytest.raises(SystemExit):
        main(words)
    assert "int8 finds its ranges on faces; give --calibrate SET" in capsys.readouterr().err


def test_faces_to_calibrate_on_need_eight_bits(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["export", "none", "--dtype", "float16", "--calibrate", "some.bin"])
    assert "--calibrate is for --dtype int8" in capsys.readouterr().err
