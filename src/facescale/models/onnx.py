"""A trained backbone as an ONNX graph, for whoever embeds without torch; needs extra `export`."""

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from facescale.acceleration.folding import fold
from facescale.backbones import Backbone
from facescale.backbones.backbone import IMAGE_SHAPE
from facescale.backbones.convolutional import ConvolutionalBackbone
from facescale.files import write_whole

INPUT, OUTPUT = "data", "embedding"
OPSET, LOWEST_OPSET = 20, 15
"""What a graph is written in, and the oldest that torch's exporter can convert one to."""
MEAN, STD = 127.5, 127.5
"""What InsightFace does to RGB pixels before it asks a graph, whatever the network."""

TOLERANCE = 1e-3  # of the largest coordinate: folded and reordered sums of float32 differ by 1e-5


def export_onnx(backbone: Backbone, path: Path, opset: int = OPSET) -> float:
    """Write `backbone`, in eval mode on the CPU, and compare the graph's answers with torch's.

    BatchNorm is folded. The graph takes "data", float32 (b, 3, 112, 112) with any b: RGB as
    (pixel - 127.5) / 127.5, also for family `mxnet`, whose own scale goes into the first
    convolution; so InsightFace's tools read it as it is. It gives "embedding" (b, dim), not
    normalised. The metadata repeats that, and names the network. The file appears whole or not at
    all.

    Returns:
        The largest difference to `backbone` on noise, as a part of the largest coordinate.

    Raises:
        ImportError: The extra `export` is not installed.
        ValueError: The graph cannot be written in `opset`.
        ArithmeticError: onnxruntime answers otherwise than torch; the graph is then not kept.
    """
    _require_extra()
    import onnx

    newest = onnx.defs.onnx_opset_version()
    if not LOWEST_OPSET <= opset <= newest:
        raise ValueError(f"opset must be from {LOWEST_OPSET} to {newest}, got {opset}")
    batch = torch.export.Dim("batch")
    with _quiet():
        program = torch.onnx.export(
            _Graph(backbone).eval(),
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
    graph.ir_version = onnx.helper.find_min_ir_version_for(graph.opset_import)
    onnx.helper.set_model_props(graph, _metadata(backbone))
    written = graph.SerializeToString()
    difference = _largest_difference(backbone, written)
    if not difference < TOLERANCE:
        raise ArithmeticError(
            f"the exported graph differs from torch by {difference:.1e} of its largest "
            f"coordinate, more than {TOLERANCE:g}; are the weights finite?"
        )
    write_whole(path, [written])
    return difference


def _check_opset(written: Any, opset: int) -> None:
    """ValueError where torch left the graph in another opset; it only logs that."""
    own = next(entry.version for entry in written if entry.domain in ("", "ai.onnx"))
    if own != opset:
        raise ValueError(f"this network cannot be written in opset {opset}; choose {own}")


class _Graph(nn.Module):
    """The folded network behind InsightFace's normalisation."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = fold(backbone)
        if isinstance(self.backbone, ConvolutionalBackbone):
            layers = self.backbone.modules()
            first = next(layer for layer in layers if isinstance(layer, nn.Conv2d))
            # between the two lie means of pixels, no more
            first.weight *= STD / self.backbone.pixel_scale

    def forward(self, data: Tensor) -> Tensor:
        """(b, 3, 112, 112) to (b, dim)."""
        backbone = self.backbone
        if not isinstance(backbone, ConvolutionalBackbone):
            embeddings: Tensor = backbone(data * STD + MEAN)
            return embeddings
        x = avg_pool2d(data, backbone.shrink) if backbone.shrink > 1 else data
        return backbone.apply_layers((*backbone.trunk_names, *backbone.neck_names), x)


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


def _largest_difference(backbone: Backbone, graph: bytes) -> float:
    """Of onnxruntime's answer on noise to torch's, relative to the largest coordinate."""
    assert not backbone.training
    random = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (3, *IMAGE_SHAPE), generator=random).float()
    normalised = ((pixels - MEAN) / STD).numpy()
    (answer,) = open_session(graph).run(None, {INPUT: normalised})
    with torch.inference_mode():
        truth = backbone(pixels)
    return float((torch.from_numpy(answer) - truth).abs().max() / truth.abs().max())


def _require_extra() -> None:
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
