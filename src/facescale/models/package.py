"""A folder that `insightface.app.FaceAnalysis` loads: recogniser, detector and their manifest.

Manifest version 2 is that of the package `insightface` from 2.0 on: it names the tasks, their files
and SHA-256 sums. Versions before it look at the shapes of the `.onnx` files, and load the folder
too. Version 1 is that of InsightFace Server; `insightface` ignores it and looks at the shapes.

Both refer to a license file MODEL.LICENSE, which InsightFace alone can sign and which is not
written. Without it `insightface` assumes its public terms, which forbid commercial use, and
InsightFace Server refuses the model; it also takes embeddings of 512 dimensions only.
"""

import json
import re
from pathlib import Path
from typing import Any

from facescale.files import checksum, write_whole
from facescale.models.yunet import SCRFD_OUTPUTS, to_scrfd

RECOGNISER, DETECTOR, MANIFEST = "recognition.onnx", "detection.onnx", "manifest.json"
MANIFESTS = (1, 2)
SERVER_DIM = 512
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def check_name(folder: Path) -> str:
    """The folder's name, by which the package is known; ValueError where it is none."""
    name = folder.resolve().name
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"{name!r} is no name of a package for InsightFace: a folder of letters, digits, '.', "
            "'_' and '-' that begins with a letter or a digit"
        )
    return name


def read_detector(path: Path) -> bytes:
    """The ONNX file of a detector with SCRFD's outputs; YuNet is rewritten, SCRFD taken as it is.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Neither of them.
    """
    import onnx

    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file; give YuNet's or SCRFD's ONNX file")
    content = path.read_bytes()
    try:
        model = onnx.load_from_string(content)
        onnx.checker.check_model(model)
    except Exception as error:  # protobuf and the checker have classes of their own
        raise ValueError(f"{path} is not an ONNX graph: {error!s:.150}") from error
    if len(model.graph.output) == SCRFD_OUTPUTS:
        return content
    try:
        rewritten: bytes = to_scrfd(model).SerializeToString()
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return rewritten


def complete_package(folder: Path, embedding_dim: int, detector: bytes, version: int = 2) -> None:
    """Write detector and manifest beside the recogniser that is in `folder` already.

    Args:
        folder: The package; its name is the model's.
        embedding_dim: Of the recogniser.
        detector: An ONNX file with SCRFD's outputs; see `read_detector`.
        version: Of the manifest, one of `MANIFESTS`.

    Raises:
        OSError: A file could not be read or written.
        ValueError: The folder's name is none of a package.
    """
    name = check_name(folder)
    write_whole(folder / DETECTOR, [detector])
    sums = {file: checksum(folder / file) for file in (DETECTOR, RECOGNISER)}
    make = _server_manifest if version == 1 else _manifest
    text = json.dumps(make(name, embedding_dim, sums), indent=2)
    write_whole(folder / MANIFEST, [text.encode()])


def _manifest(name: str, embedding_dim: int, sums: dict[str, str]) -> dict[str, Any]:
    return {
        "manifest_version": 2,
        "model_id": name,
        "license": "MODEL.LICENSE",
        "tasks": {
            "detection": {
                "file": DETECTOR,
                "sha256": sums[DETECTOR],
                "preprocessing": {"mean": 127.5, "std": 128.0},
                "preprocessing_version": "insightface-scrfd-1",
            },
            "recognition": {
                "file": RECOGNISER,
                "sha256": sums[RECOGNISER],
                "preprocessing": {"mean": 127.5, "std": 127.5},
                "preprocessing_version": "insightface-arcface-1",
                "input_size": [112, 112],
                "embedding_dimension": embedding_dim,
            },
        },
    }


def _server_manifest(name: str, embedding_dim: int, sums: dict[str, str]) -> dict[str, Any]:
    return {
        "manifest_version": 1,
        "model_id": name,
        "model_version": f"sha256-{sums[RECOGNISER][:16]}",
        "files": {"detector": DETECTOR, "recognizer": RECOGNISER},
        "recognition": {
            "input_size": [112, 112],
            "embedding_dimension": embedding_dim,
            "preprocessing": "insightface-arcface-1",
        },
        "license": "MODEL.LICENSE",
    }
