"""An ONNX file as a network: raw pixels in, embeddings out; needs onnxruntime (extra `export`)."""

import math
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from facescale.models.onnx import MEAN, STD, open_session


class OnnxNetwork(nn.Module):
    """Embeds as a `Backbone` does, with the weights of an ONNX file, on the CPU.

    Attributes:
        mean: Subtracted from the pixels 0..255.
        std: Divides them then.
        fixed_batch: How many images the graph takes at a time; None for any number.
    """

    def __init__(self, path: Path | str, mean: float | None = None, std: float | None = None):
        """Open the file.

        Args:
            path: A graph with one float32 input (b, 3, 112, 112), RGB, and one output (b, dim).
            mean: See `mean`; None takes "input_mean" of the file's metadata, else 127.5, which is
                InsightFace's. A graph that subtracts for itself needs 0.
            std: Likewise "input_std", else 127.5; 1 for a graph that divides for itself.

        Raises:
            ImportError: No onnxruntime.
            FileNotFoundError: No such file.
            ValueError: Not an ONNX graph of that form, or `mean` or `std` is no number to use.
        """
        super().__init__()
        self.path = Path(path)
        self._session = _open(self.path)
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        if len(inputs) != 1 or len(outputs) != 1 or inputs[0].shape[1:] != [3, 112, 112]:
            shapes = ", ".join(str(tensor.shape) for tensor in (*inputs, *outputs))
            raise ValueError(
                f"{path}: a face network has one input (b, 3, 112, 112) and one output (b, dim), "
                f"this graph has {len(inputs)} and {len(outputs)}: {shapes}"
            )
        if inputs[0].type != "tensor(float)":
            raise ValueError(
                f"{path}: its input is a {inputs[0].type}, not a tensor(float); export the graph "
                "with an input of float32"
            )
        self._input = inputs[0].name
        stored = self._session.get_modelmeta().custom_metadata_map
        self.mean = _number(stored, "input_mean", MEAN, self.path) if mean is None else mean
        self.std = _number(stored, "input_std", STD, self.path) if std is None else std
        if not math.isfinite(self.mean) or not math.isfinite(self.std) or self.std == 0:
            raise ValueError(
                f"{path}: pixels cannot become (pixel - {self.mean:g}) / {self.std:g}; give the "
                "mean and std that the graph was trained with"
            )
        batch = inputs[0].shape[0]
        self.fixed_batch = batch if isinstance(batch, int) else None

    def forward(self, pixels: Tensor) -> Tensor:
        """RGB pixels 0..255 (b, 3, 112, 112) of any type to embeddings (b, dim) in float32."""
        # Not in place: float32 pixels on the CPU are the caller's own tensor
        images = ((pixels.cpu().float() - self.mean) / self.std).contiguous().numpy()
        count = self.fixed_batch or max(len(images), 1)
        rows = []
        for start in range(0, len(images), count):
            part = images[start : start + count]
            filled = torch.from_numpy(part)
            if len(part) < count:  # the last rows are thrown away again
                filled = torch.cat([filled, filled[-1:].expand(count - len(part), -1, -1, -1)])
            (answer,) = self._session.run(None, {self._input: filled.numpy()})
            rows.append(torch.from_numpy(answer[: len(part)]).flatten(1))
        return torch.cat(rows).to(pixels.device)


def _number(stored: Mapping[str, str], name: str, default: float, path: Path) -> float:
    """A number of the file's metadata; ValueError where it is none."""
    try:
        return float(stored.get(name, default))
    except ValueError as error:
        raise ValueError(
            f"{path}: {name} in its metadata is {stored[name]!r:.60}; give the mean and std that "
            "the graph was trained with"
        ) from error


def _open(path: Path) -> Any:
    if find_spec("onnxruntime") is None:
        raise ImportError("no onnxruntime; it comes with pip install 'facescale[export]'")
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file; give an ONNX graph")
    try:
        return open_session(path)
    except Exception as error:  # onnxruntime has a class of error for every kind of damage
        raise ValueError(f"{path} is not an ONNX graph: {error}") from error
