"""An ONNX file embeds as the backbone does that it was exported from."""

from pathlib import Path

import pytest
import torch

from facescale import backbones

pytest.importorskip("onnxscript", reason="ONNX files need the extra 'export'")
from facescale.models.onnx import export_onnx
from facescale.models.onnx_network import OnnxNetwork
from shared_data import shared_data

onnx = pytest.importorskip("onnx", reason="ONNX files need the extra 'export'")


def noise(count: int) -> torch.Tensor:
    random = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, 112, 112), generator=random, dtype=torch.uint8)


@pytest.mark.usefixtures("short_networks")
@pytest.mark.parametrize("family", ["mxnet", "arcface_torch"])
def test_an_export_answers_as_its_backbone(tmp_path: Path, family: str) -> None:
    random = torch.Generator().manual_seed(1)
    backbone = backbones.build("y1", family=family, image_size=28, generator=random).eval()
    export_onnx(backbone, tmp_path / "y1.onnx")
    network = OnnxNetwork(tmp_path / "y1.onnx")
    pixels = noise(5)
    with torch.inference_mode():
        expected = backbone(pixels)
    scale = expected.abs().max()  # tiny before training
    torch.testing.assert_close(network(pixels) / scale, expected / scale, rtol=0, atol=1e-3)
    assert network.fixed_batch is None
    assert torch.equal(network.train()(pixels), network.eval()(pixels))
    half = OnnxNetwork(tmp_path / "y1.onnx", mean=127.5, std=255.0)
    assert (half(pixels) - expected).abs().max() > 0.1 * scale


def test_a_graph_of_one_image_at_a_time_takes_any_batch() -> None:
    network = OnnxNetwork(shared_data("models/mobilefacenet_reference.onnx"), 127, 128)
    assert network.fixed_batch == 1
    pixels = noise(3)
    together = network(pixels)
    assert together.shape == (3, 512)
    for row, image in zip(together, pixels, strict=True):
        torch.testing.assert_close(network(image[None])[0], row)


def test_what_is_no_face_network_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="one input"):
        OnnxNetwork(shared_data("models/face_detection_yunet_2026may.onnx"))
    with pytest.raises(FileNotFoundError, match="give an ONNX graph"):
        OnnxNetwork(tmp_path / "none.onnx")
    (tmp_path / "broken.onnx").write_bytes(b"no graph")
    with pytest.raises(ValueError, match=r"broken\.onnx is not an ONNX graph"):
        OnnxNetwork(tmp_path / "broken.onnx")


def flatten_graph(
    path: Path, metadata: dict[str, str] | None = None, kind: int = onnx.TensorProto.FLOAT
) -> Path:
    """A graph whose embedding is its input, normalised."""
    helper = onnx.helper
    given = helper.make_tensor_value_info("data", kind, ["b", 3, 112, 112])
    answer = helper.make_tensor_value_info("embedding", kind, ["b", 3 * 112 * 112])
    node = helper.make_node("Flatten", ["data"], ["embedding"])
    graph = helper.make_graph([node], "flatten", [given], [answer])
    opset = helper.make_opsetid("", 17)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=8)
    helper.set_model_props(model, metadata or {})
    onnx.save(model, path)
    return path


def test_the_callers_pixels_stay_as_they_are(tmp_path: Path) -> None:
    network = OnnxNetwork(flatten_graph(tmp_path / "x.onnx"))
    pixels = noise(2).float()
    before = pixels.clone()
    assert torch.equal(network(pixels), (before.flatten(1) - 127.5) / 127.5)
    assert torch.equal(pixels, before)


def test_an_input_of_another_type_is_refused(tmp_path: Path) -> None:
    path = flatten_graph(tmp_path / "x.onnx", kind=onnx.TensorProto.FLOAT16)
    with pytest.raises(ValueError, match=r"x\.onnx: its input is a tensor\(float16\)"):
        OnnxNetwork(path)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"input_mean": "none"}, "input_mean in its metadata is 'none'"),
        ({"input_std": "0"}, r"pixels cannot become \(pixel - 127.5\) / 0"),
        ({"input_mean": "nan"}, r"pixels cannot become \(pixel - nan\)"),
    ],
)
def test_metadata_that_cannot_normalise_is_refused(
    tmp_path: Path, metadata: dict[str, str], message: str
) -> None:
    path = flatten_graph(tmp_path / "x.onnx", metadata)
    with pytest.raises(ValueError, match=message):
        OnnxNetwork(path)
