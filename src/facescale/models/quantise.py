"""An ONNX graph whose convolutions and products are of 8-bit integers; needs extra `export`.

Weights get a scale per channel, activations one per tensor from the values that they take on some
faces. The graph has the form that is called QDQ: pairs of QuantizeLinear and DequantizeLinear round
what goes into an operator, and a runtime joins them with it where it has an integer kernel.
"""

import logging
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

FACES = 256
"""Faces that give the ranges of the activations; more change little."""
_BATCH = 16


def quantise(graph: Any, name: str, faces: NDArray[np.float32]) -> Any:
    """A copy of an ONNX model in 8-bit integers.

    Args:
        graph: The model, in float32.
        name: Of its input.
        faces: (n, 3, 112, 112) normalised as the input is.

    Raises:
        ValueError: There is no face.
    """
    import onnx
    from onnxruntime import quantization

    if not len(faces):
        raise ValueError("8-bit integers need faces to find the ranges of the activations")
    batches = [{name: faces[start : start + _BATCH]} for start in range(0, len(faces), _BATCH)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "graph.onnx"
        with _quiet():
            quantization.quantize_static(
                graph,
                path,
                _reader(batches),
                per_channel=True,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
            )
        return onnx.load(path)


def _reader(batches: list[dict[str, NDArray[np.float32]]]) -> Any:
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        left = iter(batches)

        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            return next(self.left, None)

    return Reader()


class _quiet:
    """Without the root logger's advice to preprocess the graph, which torch has done."""

    def __enter__(self) -> None:
        self._level = logging.root.level
        logging.root.setLevel(logging.ERROR)

    def __exit__(self, *_: object) -> None:
        logging.root.setLevel(self._level)
