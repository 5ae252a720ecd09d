"""YuNet, run by OpenCV. Source: Wu et al., Machine Intelligence Research 20, 2023."""

import threading
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from facescale.data.images import Pixels
from facescale.detection.detector import Face

_OVERLAP = 0.3  # of two boxes that are one face
_CANDIDATES = 5000


class YuNet:
    """OpenCV's `FaceDetectorYN`, one for each thread that asks."""

    def __init__(self, path: Path, min_score: float = 0.6) -> None:
        """Open the model; ValueError if OpenCV cannot read it.

        OpenCV itself is kept to one thread: photographs are what runs in parallel.
        """
        cv2.setNumThreads(1)
        logging = cv2.utils.logging
        logging.setLogLevel(logging.LOG_LEVEL_ERROR)  # 5.0 warns at each start
        self._path, self._min_score = path, min_score
        self._own = threading.local()
        try:
            self._net()
        except cv2.error as error:
            raise ValueError(f"{path} is not a model that OpenCV reads: {error.err}") from error

    def _net(self) -> Any:
        if not hasattr(self._own, "net"):
            self._own.net = cv2.FaceDetectorYN.create(
                str(self._path), "", (320, 320), self._min_score, _OVERLAP, _CANDIDATES
            )
        return self._own.net

    def detect(self, image: Pixels) -> list[Face]:
        """See `Detector`."""
        net = self._net()
        net.setInputSize((image.shape[1], image.shape[0]))
        _, rows = net.detect(np.ascontiguousarray(image[:, :, ::-1]))
        return [
            Face(
                np.concatenate([row[:2], row[:2] + row[2:4]]),
                float(row[14]),
                row[4:14].reshape(5, 2),
            )
            for row in (() if rows is None else rows)
        ]
