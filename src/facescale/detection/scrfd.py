"""SCRFD as ONNX, the detector of InsightFace. Source: Guo et al., ICLR 2022."""

from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image

from facescale.data.images import Pixels
from facescale.detection.detector import LONGEST, Face, Singles

_STRIDES = (8, 16, 32)
_ANCHORS = 2  # at each place
_OVERLAP = 0.4  # of two boxes that are one face


class Scrfd:
    """A graph with nine outputs: scores, boxes and points at three strides."""

    def __init__(self, path: Path, min_score: float = 0.5) -> None:
        """Open the model; ValueError if it is not such a graph."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1  # photographs are what runs in parallel
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # has an exception type for each status
            raise ValueError(f"{path} is not a model that onnxruntime reads: {error}") from error
        outputs = len(self._session.get_outputs())
        if outputs != 9:
            raise ValueError(
                f"{path} has {outputs} outputs; a face detector is YuNet, or SCRFD with points, "
                "which has 9"
            )
        self._min_score = min_score
        (given,) = self._session.get_inputs()
        self._input = given.name
        fixed = [side if isinstance(side, int) else LONGEST for side in given.shape[2:]]
        self._height, self._width = fixed

    def detect(self, image: Pixels) -> list[Face]:
        """See `Detector`. The image is scaled into the model's input, its top left corner."""
        scale = min(self._height / image.shape[0], self._width / image.shape[1])
        size = [max(1, int(side * scale)) for side in (image.shape[1], image.shape[0])]
        small = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
        batch = np.full((1, 3, self._height, self._width), -127.5 / 128, np.float32)
        batch[0, :, : size[1], : size[0]] = (small.transpose(2, 0, 1) - np.float32(127.5)) / 128
        outputs = self._session.run(None, {self._input: batch})
        boxes, scores, points = self._decode(outputs)
        kept = suppress(boxes, scores)
        ratio = np.array([image.shape[1] / size[0], image.shape[0] / size[1]], np.float32)
        return [
            Face((boxes[i].reshape(2, 2) * ratio).reshape(4), float(scores[i]), points[i] * ratio)
            for i in kept
        ]

    def _decode(self, outputs: list[Singles]) -> tuple[Singles, Singles, Singles]:
        """Boxes (n, 4), scores (n,) and points (n, 5, 2) of the anchors above the threshold."""
        found = []
        for level, stride in enumerate(_STRIDES):
            score = outputs[level].reshape(-1)
            columns = self._width // stride
            place = np.flatnonzero(score >= self._min_score)
            cell = place // _ANCHORS
            anchor = np.stack([cell % columns, cell // columns], 1).astype(np.float32) * stride
            near = outputs[3 + level].reshape(-1, 4)[place] * stride
            boxes = np.concatenate([anchor - near[:, :2], anchor + near[:, 2:]], 1)
            away = outputs[6 + level].reshape(-1, 5, 2)[place] * stride
            found.append((boxes, score[place], anchor[:, None] + away))
        boxes, scores, points = (np.concatenate(parts) for parts in zip(*found, strict=True))
        return boxes, scores, points


def suppress(boxes: Singles, scores: Singles, overlap: float = _OVERLAP) -> list[int]:
    """Indices of boxes (n, 4) of which none overlaps a better one; best first."""
    area = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    left, kept = np.argsort(-scores, kind="stable"), []
    while len(left):
        best, left = int(left[0]), left[1:]
        kept.append(best)
        corner = np.maximum(boxes[left, :2], boxes[best, :2])
        other = np.minimum(boxes[left, 2:], boxes[best, 2:])
        both = np.prod((other - corner).clip(min=0), axis=1)
        left = left[both <= overlap * (area[left] + area[best] - both)]
    return kept
