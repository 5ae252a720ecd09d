"""Detectors for tests: faces are bright squares on black, so that no model file is needed."""

import numpy as np

from facescale.data.images import Pixels
from facescale.detection.detector import Face
from facescale.evaluation.alignment import TEMPLATE


def painted(*faces: tuple[int, int, int], height: int = 200, width: int = 300) -> Pixels:
    """A black photograph with squares at (left, top) of a side; the eyes' row is red."""
    image = np.zeros((height, width, 3), np.uint8)
    for left, top, side in faces:
        image[top : top + side, left : left + side] = 200
        image[top : top + side // 3, left : left + side] = (250, 60, 60)
    return image


class Squares:
    """Finds what `painted` paints: one face for each run of bright columns."""

    def detect(self, image: Pixels) -> list[Face]:
        bright = image.max(2) > 100
        columns = np.concatenate([[False], bright.any(0), [False]])
        edges = np.flatnonzero(np.diff(columns.astype(int)))
        faces = []
        for left, right in edges.reshape(-1, 2):
            rows = np.flatnonzero(bright[:, left:right].any(1))
            box = np.array([left, rows[0], right, rows[-1] + 1], np.float32)
            scale = (box[2] - box[0]) / 112
            faces.append(Face(box, 0.9, (TEMPLATE * scale + box[:2]).astype(np.float32)))
        return faces
