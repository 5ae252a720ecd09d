"""A trained backbone as an ONNX graph; needs the extra `export`."""

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from facescale.acceleration.folding import fold
from facescale.backbones import Backbone
from facescale.backbones.backbone import IMAGE_SHAPE
from facescale.backbones.convolutional import ConvolutionalBackbone
from facescale.files import write_whole
from facescale.models.quantise import FACES, quantise

INPUT, OUTPUT = "data", "embedding"
OPSET, LOWEST_OPSET = 20, 15
"""What a graph is written in, and the oldest that torch's exporter can convert one to."""
MEAN, STD = 127.5, 127.5
"""What InsightFace does to RGB pixels before it asks a graph, whatever the network."""

Dtype = Literal["float32", "float16", "int8"]
TOLERANCES: dict[Dtype, float] = {"float32": 1e-3, "float16": 0.1, "int8": 1.0}
"""Of the largest coordinate. Folded and reordered sums of float32 differ by 1e-5. The others catch
a graph that is wrong; what they lose in accuracy is measured on a verification set."""


def export_onnx(
    backbone: Backbone,
    path: Path,
    opset: int = OPSET,
    *,
    ir_version: int | None = None,
    dtype: Dtype = "float32",
    faces: NDArray[np.uint8] | None = None,
) -> float:
    """Write `backbone`, in eval mode on the CPU, and compare the graph's answers with torch's.

    BatchNorm is folded. The graph takes "data", float32 (b, 3, 112, 112) with any b: RGB as
    (pixel - 127.5) / 127.5, also for family `mxnet`, whose own scale goes into the first
    convolution; so InsightFace's tools read it as it is. It gives "embedding" (b, dim), not
    normalised. The metadata repeats that, and names the network. The file appears whole or not at
    all.

    Args:
        backbone: The network.
        path: The file.
        opset: Of the operators.
        ir_version: Of the file's format; None takes the oldest that has the opset.
        dtype: Of weights and arithmetic; input and output stay float32. See `quantise` for int8.
        faces: (n, 112, 112, 3), RGB, on which int8 finds its ranges.

    Returns:
        The largest difference, as a part of the largest coordinate: on noise, for int8 on `faces`.

    Raises:
        ImportError: The extra `export` is not installed.
        ValueError: The graph cannot be written in `opset` or `ir_version`, or int8 has no faces.
        ArithmeticError: onnxruntime answers otherwise than torch; the graph is then not kept.
    """
    require_extra()
    import onnx

    newest = onnx.defs.onnx_opset_version()
    if not LOWEST_OPSET <= opset <= newest:
        raise ValueError(f"opset must be from {LOWEST_OPSET} to {newest}, got {opset}")
    graph, pixels = _make(backbone, opset, dtype, faces)
    _set_ir_version_(graph, ir_version)
    onnx.helper.set_model_props(graph, _metadata(backbone) | {"dtype": dtype})
    written = graph.SerializeToString()
    difference = _largest_difference(backbone, written, pixels)
    if not difference < TOLERANCES[dtype]:
        raise ArithmeticError(
            f"the exported graph differs from torch by {difference:.1e} of the largest coordinate, "
            f"more than {TOLERANCES[dtype]:g}; are the weights finite?"
        )
    write_whole(path, [written])
    return difference


def _make(
    backbone: Backbone, opset: int, dtype: Dtype, faces: NDArray[np.uint8] | None
) -> tuple[Any, Tensor]:
    """The ONNX model, and images (b, 3, 112, 112) on which it should answer as torch."""
    graph = _trace(backbone, opset, torch.float16 if dtype == "float16" else torch.float32)
    if dtype != "int8":
        return graph, _noise()
    if faces is None or not len(faces):
        raise ValueError("int8 needs faces to find the ranges of the activations")
    pixels = faces[:FACES].transpose(0, 3, 1, 2)
    return quantise(graph, INPUT, _normalised(pixels)), torch.from_numpy(pixels[:8].copy())


def _trace(backbone: Backbone, opset: int, dtype: torch.dtype) -> Any:
    """The folded network as an ONNX model with float32 input and output."""
    batch = torch.export.Dim("batch")
    with _quiet():
        program = torch.onnx.export(
            _Graph(backbone, dtype).eval(),
            (torch.zeros(2, *IMAGE_SHAPE),),
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=({0: batch},),
            opset_version=opset,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    graph = program.model_proto
    _check_opset(graph.opset_import, opset)
    return graph


def _set_ir_version_(graph: Any, wanted: int | None) -> None:
    """ValueError where the format `wanted` does not have the graph's opset."""
    import onnx

    oldest = onnx.helper.find_min_ir_version_for(graph.opset_import, ignore_unknown=True)
    newest = onnx.IR_VERSION
    if wanted is not None and not oldest <= wanted <= newest:
        raise ValueError(f"ir_version must be from {oldest} to {newest} here, got {wanted}")
    graph.ir_version = oldest if wanted is None else wanted


def _check_opset(written: Any, opset: int) -> None:
    """ValueError where torch left the graph in another opset; it only logs that."""
    own = next(entry.version for entry in written if entry.domain in ("", "ai.onnx"))
    if own != opset:
        raise ValueError(f"this network cannot be written in opset {opset}; choose {own}")


class _Graph(nn.Module):
    """The folded network behind InsightFace's normalisation."""

    def __init__(self, backbone: Backbone, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.backbone = fold(backbone)
        if isinstance(self.backbone, ConvolutionalBackbone):
            layers = self.backbone.modules()
            first = next(layer for layer in layers if isinstance(layer, nn.Conv2d))
            # between the two lie means of pixels, no more
            first.weight *= STD / self.backbone.pixel_scale
        self.backbone.to(dtype)

    def forward(self, data: Tensor) -> Tensor:
        """(b, 3, 112, 112) to (b, dim)."""
        backbone = self.backbone
        if not isinstance(backbone, ConvolutionalBackbone):
            embeddings: Tensor = backbone(data * STD + MEAN)
            return embeddings.float()
        x = avg_pool2d(data, backbone.shrink) if backbone.shrink > 1 else data
        layers = (*backbone.trunk_names, *backbone.neck_names)
        return backbone.apply_layers(layers, x.to(self.dtype)).float()


def _metadata(backbone: Backbone) -> dict[str, str]:
    return {
        "facescale.backbone": json.dumps(backbone.spec),
        "input": f"aligned RGB faces (b, 3, 112, 112), (pixel - {MEAN}) / {STD}",
        "input_mean": str(MEAN),
        "input_std": str(STD),
        "output": f"embeddings (b, {backbone.embedding_dim}), not normalised",
    }


def open_session(graph: Path | bytes) -> Any:
    """Onnxruntime on the CPU, with as many threads as torch has, for a file or what is in one."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def _noise() -> Tensor:
    random = torch.Generator().manual_seed(0)
    return torch.randint(256, (3, *IMAGE_SHAPE), generator=random).float()


def _normalised(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    return (pixels.astype(np.float32) - np.float32(MEAN)) / np.float32(STD)


def _largest_difference(backbone: Backbone, graph: bytes, pixels: Tensor) -> float:
    """Of onnxruntime's answer on (b, 3, 112, 112) to torch's, relative to the largest coordinate.

    Not a number where the answer is not finite.
    """
    assert not backbone.training
    normalised = ((pixels.float() - MEAN) / STD).numpy()
    (answer,) = open_session(graph).run(None, {INPUT: normalised})
    with torch.inference_mode():
        truth = backbone(pixels)
    return float((torch.from_numpy(answer) - truth).abs().max() / truth.abs().max())


def require_extra() -> None:
    """Raise ImportError, with the remedy, where a package of the extra `export` is missing."""
    missing = [n for n in ("onnx", "onnxscript", "onnxruntime") if find_spec(n) is None]
    if missing:
        raise ImportError(
            f"no {', '.join(missing)}; they come with pip install 'facescale[export]'"
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch's exporter says of itself: nothing that a user could act on."""
    logs = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [log.level for log in logs]
    for log in logs:
        log.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)
