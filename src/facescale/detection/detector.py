"""What a face detector is, and which of the faces it finds is meant."""

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from facescale.data.images import Pixels

LONGEST = 640
"""Pixels of the longer side of what a detector sees; larger photographs are scaled down for it."""

Singles = NDArray[np.float32]
Rule = Literal["largest", "central", "only"]


@dataclass(frozen=True, eq=False)
class Face:
    """A face on a photograph, in its pixels.

    Attributes:
        box: (4,) left, top, right, bottom.
        score: Of the detector, 0 to 1.
        points: (5, 2) as x, y, in the order of `evaluation.alignment.TEMPLATE`: eyes, nose and
            corners of the mouth, the left one in the picture first.
    """

    box: Singles
    score: float
    points: Singles


class Detector(Protocol):
    """Finds faces. Several threads may call `detect` at the same time."""

    def detect(self, image: Pixels) -> list[Face]:
        """The faces on an RGB image (height, width, 3), uint8, in any order."""


def find_faces(detector: Detector, image: Pixels, longest: int = LONGEST) -> list[Face]:
    """The faces on an image, which is scaled down for the detector if a side is above `longest`."""
    height, width = image.shape[:2]
    scale = max(height, width) / longest
    if scale <= 1:
        return detector.detect(image)
    size = (max(1, round(width / scale)), max(1, round(height / scale)))
    whole = Image.fromarray(image)
    small = np.asarray(whole.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0))
    ratio = np.array([width / size[0], height / size[1]], np.float32)
    return [
        Face(
            # The middle of the first pixel is (0, 0) in both.
            ((face.box.reshape(2, 2) + 0.5) * ratio - 0.5).reshape(4),
            face.score,
            (face.points + 0.5) * ratio - 0.5,
        )
        for face in detector.detect(small)
    ]


def choose_face(faces: list[Face], image: Pixels, rule: Rule = "largest") -> Face | None:
    """The face that is meant; None if there is none, or several where `rule` is "only".

    "central" takes the face whose box has its middle nearest to the middle of the image.
    """
    if not faces or (rule == "only" and len(faces) > 1):
        return None
    if rule == "central":
        middle = np.array([image.shape[1], image.shape[0]]) / 2
        return min(faces, key=lambda face: np.linalg.norm(face.box.reshape(2, 2).mean(0) - middle))
    return max(faces, key=lambda face: float(np.prod(face.box[2:] - face.box[:2])))
