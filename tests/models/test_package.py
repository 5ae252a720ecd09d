"""A package is loaded by the real insightface, whose answers are those of YuNet and of torch."""

import hashlib
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_onnx import lived_in

from facescale import save_backbone
from facescale.cli import main
from facescale.evaluation.alignment import align
from facescale.models.onnx import open_session
from facescale.models.package import complete_package, read_detector
from shared_data import shared_data

onnx = pytest.importorskip("onnx", reason="it comes with the extra 'export'")
pytest.importorskip("onnxruntime", reason="it comes with the extra 'export'")
Dict = dict[str, Any]
YUNET = "models/face_detection_yunet_2026may.onnx"
SIZE = 256


def python_with_insightface() -> str:
    """A Python that has the package; skips without one."""
    if path := os.environ.get("FACESCALE_INSIGHTFACE"):
        return path
    if find_spec("insightface") is None:
        pytest.skip("no insightface; install it, or set FACESCALE_INSIGHTFACE to a Python with it")
    return sys.executable


def photographs() -> list[Path]:
    return sorted(shared_data("photos").glob("*/*_0001.jpg"))[:40:4]


def make_package(tmp_path: Path, *options: str, dim: int = 512) -> Path:
    model = lived_in(name="y1", image_size=28, embedding_dim=dim)
    save_backbone(tmp_path / "model.safetensors", model)
    folder = tmp_path / "mine"
    detector = str(shared_data(YUNET))
    main(["export", str(tmp_path), "--package", str(folder), "--detector", detector, *options])
    return folder


def analysed(tmp_path: Path, package: Path, photos: list[Path]) -> Dict:
    script = Path(__file__).with_name("insightface_process.py")
    words = [str(script), str(package), str(tmp_path / "out.npz"), str(SIZE), *map(str, photos)]
    done = subprocess.run(
        [python_with_insightface(), *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "out.npz") as arrays:
        return dict(arrays)


def opencv(photos: list[Path]) -> list[Any]:
    """YuNet's best face by OpenCV on each photograph, scaled as insightface scales it."""
    cv2 = pytest.importorskip("cv2", reason="it comes with the extra 'photos'")
    detector = cv2.FaceDetectorYN.create(str(shared_data(YUNET)), "", (SIZE, SIZE), 0.5)
    found = []
    for photo in photos:
        image = cv2.resize(cv2.imread(str(photo)), (SIZE, SIZE))
        _, faces = detector.detect(image)
        found.append(max(faces, key=lambda face: face[-1]))
    return found


@pytest.mark.parametrize("version", [2, 1])
def test_insightface_loads_it_and_answers_as_we_do(
    tmp_path: Path, version: int, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = photographs()
    folder = make_package(tmp_path, "--manifest", str(version))
    assert ("FaceAnalysis(" in capsys.readouterr().out) == (version == 2)
    answers = analysed(tmp_path, folder, photos)
    assert answers["tasks"].tolist() == ["detection", "recognition"]
    assert answers["manifest"] == (2 if version == 2 else 0)
    assert answers["license"] == "default_non_commercial"
    assert answers["normalisation"].tolist() == [127.5, 127.5]
    scale = 250 / SIZE  # all photographs are 250 x 250
    for place, face in enumerate(opencv(photos)):
        box = np.array([face[0], face[1], face[0] + face[2], face[1] + face[3]]) * scale
        np.testing.assert_allclose(answers["boxes"][place], box, atol=3e-5)
        points = face[4:14].reshape(5, 2) * scale
        np.testing.assert_allclose(answers["points"][place], points, atol=3e-5)
        assert abs(answers["scores"][place] - face[14]) < 1e-6
    faces = [
        align(np.asarray(_rgb(photo)), points)
        for photo, points in zip(photos, answers["points"], strict=True)
    ]
    pixels = torch.from_numpy(np.stack(faces).transpose(0, 3, 1, 2).copy())
    from facescale.models.weights import load_backbone

    with torch.no_grad():
        ours = load_backbone(tmp_path / "model.safetensors")(pixels).numpy()
    theirs = answers["embeddings"]
    cosines = (ours * theirs).sum(1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(theirs, axis=1)
    assert cosines.min() > 0.999  # OpenCV's warp rounds otherwise than ours


def _rgb(path: Path) -> Any:
    from facescale.data.images import decode_whole

    return decode_whole(path.read_bytes())


def test_the_detector_answers_as_yunet_in_every_cell(tmp_path: Path) -> None:
    yunet, path = shared_data(YUNET), tmp_path / "scrfd.onnx"
    path.write_bytes(read_detector(yunet))
    random = np.random.default_rng(0)
    bgr = random.integers(0, 256, (1, 3, 64, 96)).astype(np.float32)
    names = [output.name for output in onnx.load(yunet).graph.output]
    truth = dict(zip(names, open_session(yunet).run(None, {"input": bgr}), strict=True))
    rgb = (bgr[:, ::-1] - np.float32(127.5)) / np.float32(128)
    session = open_session(path)
    answers = session.run(None, {session.get_inputs()[0].name: rgb})
    assert len(answers) == 9
    for place, stride in enumerate((8, 16, 32)):
        score, box, points = answers[place::3]
        np.testing.assert_allclose(
            score[0::2, 0], np.sqrt(truth[f"cls_{stride}"] * truth[f"obj_{stride}"])[0, :, 0]
        )
        assert (score[1::2] == 0).all()
        shift, size = np.split(truth[f"bbox_{stride}"][0], 2, axis=1)
        sides = np.hstack([np.exp(size) / 2 - shift, np.exp(size) / 2 + shift])
        np.testing.assert_allclose(box[0::2], sides, rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(points[0::2], truth[f"kps_{stride}"][0])
        assert len(score) == len(box) == len(points) == 2 * (64 // stride) * (96 // stride)
    assert read_detector(path) == path.read_bytes()  # SCRFD's outputs: taken as it is


def test_a_manifest_names_the_files_by_their_checksums(tmp_path: Path) -> None:
    folder = make_package(tmp_path, dim=64)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["model_id"] == "mine"
    assert manifest["tasks"]["recognition"]["embedding_dimension"] == 64
    for task in manifest["tasks"].values():
        content = (folder / task["file"]).read_bytes()
        assert task["sha256"] == hashlib.sha256(content).hexdigest()
    names = {"manifest.json", "detection.onnx", "recognition.onnx"}
    assert {path.name for path in folder.iterdir()} == names  # no license


def test_the_servers_manifest_has_its_fields_and_the_true_dimension(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_package(tmp_path, "--manifest", "1", dim=64)
    said = capsys.readouterr().out
    assert "signed by InsightFace" in said
    assert "512 dimensions; this model has 64" in said
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest.pop("model_version").startswith("sha256-")
    assert manifest == {
        "manifest_version": 1,
        "model_id": "mine",
        "files": {"detector": "detection.onnx", "recognizer": "recognition.onnx"},
        "recognition": {
            "input_size": [112, 112],
            "embedding_dimension": 64,
            "preprocessing": "insightface-arcface-1",
        },
        "license": "MODEL.LICENSE",
    }


def one_line(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit):
        main(["export", *words])
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said


@pytest.mark.usefixtures("short_networks")
def test_a_mistake_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_backbone(tmp_path / "model.safetensors", lived_in(name="y1", image_size=28))
    model, folder = str(tmp_path), str(tmp_path / "p")
    assert "are for a package; give --package FOLDER" in one_line(capsys, model, "--detector", "x")
    assert "not both" in one_line(capsys, model, "x.onnx", "--package", folder)
    assert "needs a detector" in one_line(capsys, model, "--package", folder, "--manifest", "1")
    assert "no name of a package" in one_line(capsys, model, "--package", str(tmp_path / "a b"))
    nothing = str(tmp_path / "no.onnx")
    said = one_line(capsys, model, "--package", folder, "--detector", nothing)
    assert "no.onnx is not a file; give YuNet's" in said
    (tmp_path / "no.onnx").write_bytes(b"no")
    assert "is not an ONNX graph" in one_line(
        capsys, model, "--package", folder, "--detector", nothing
    )
    main(["export", model, "--package", folder])
    assert "has no detector" in capsys.readouterr().out
    said = one_line(capsys, model, "--package", folder, "--detector", f"{folder}/recognition.onnx")
    assert "neither YuNet nor SCRFD; its outputs are embedding" in said


def test_a_package_without_a_recogniser_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="recognition"):
        complete_package(tmp_path, 512, b"detector")
