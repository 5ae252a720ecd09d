"""Opens the model file of a face detector, of either kind."""

import os
from pathlib import Path

from facescale.detection.detector import Detector

VARIABLE = "FACESCALE_DETECTOR"
"""In the environment: the model file of the detector, where none is given."""


def open_detector(path: str | Path | None = None, min_score: float | None = None) -> Detector:
    """Open a model file: YuNet through OpenCV, or SCRFD as ONNX through onnxruntime.

    Args:
        path: The file; None takes the one that the variable `FACESCALE_DETECTOR` names.
        min_score: Faces below it are not reported; None is the usual threshold of the model.

    Raises:
        FileNotFoundError: No file is given, or it does not exist.
        ValueError: The file is neither of the two.
        ImportError: The package that runs it is not installed.
    """
    path = path or os.environ.get(VARIABLE)
    if not path:
        raise FileNotFoundError(
            f"no face detector: give --detector FILE or set {VARIABLE}, to a file of YuNet "
            "(face_detection_yunet_2023mar.onnx of OpenCV Zoo) or of SCRFD (det_10g.onnx)"
        )
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; give the file of a face detector")
    content = path.read_bytes()
    # Of outputs, and of the input of a YuNet that `models.yunet` has rewritten as SCRFD.
    if b"obj_8" in content and b"scrfd_input" not in content:
        from facescale.detection.yunet import YuNet

        return YuNet(path, 0.6 if min_score is None else min_score)
    from facescale.detection.scrfd import Scrfd

    return Scrfd(path, 0.5 if min_score is None else min_score)
