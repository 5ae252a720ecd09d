"""Which face is chosen, scaling for the detector, SCRFD's outputs, and YuNet on photographs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from facescale.data.images import decode_whole
from facescale.detection.detector import choose_face, find_faces
from facescale.detection.opening import open_detector
from facescale.models.yunet import to_scrfd
from painted_faces import Squares, painted
from shared_data import shared_data


def test_the_largest_the_most_central_or_the_only_face_is_chosen() -> None:
    image = painted((10, 10, 80), (130, 80, 40), (230, 20, 50))
    faces = Squares().detect(image)
    assert len(faces) == 3
    largest, central = (choose_face(faces, image, rule) for rule in ("largest", "central"))
    assert largest is not None
    assert central is not None
    assert largest.box.tolist() == [10, 10, 90, 90]
    assert central.box.tolist() == [130, 80, 170, 120]
    assert choose_face(faces, image, "only") is None
    assert choose_face(faces[:1], image, "only") is faces[0]
    assert choose_face([], image) is None


def test_a_large_photograph_is_scaled_down_for_the_detector_and_its_points_back_up() -> None:
    image = painted((900, 300, 600), height=1200, width=2000)
    (exact,) = Squares().detect(image)
    sizes = []

    class Small(Squares):
        def detect(self, image: Any) -> Any:
            sizes.append(image.shape)
            return super().detect(image)

    (found,) = find_faces(Small(), image, longest=250)
    assert sizes == [(150, 250, 3)]
    np.testing.assert_allclose(found.points, exact.points, atol=9)  # a pixel of the small one
    (whole,) = find_faces(Small(), image, longest=2000)
    assert (whole.points == exact.points).all()


def scrfd_file(path: Path, outputs: Sequence[np.ndarray], side: int | str = 64) -> Path:
    """A graph that has nine constants as outputs, whatever it is given."""
    onnx = pytest.importorskip("onnx", reason="SCRFD needs the extra 'export'")
    helper = onnx.helper
    shape = [1, 3, side, side]
    image = helper.make_tensor_value_info("input.1", onnx.TensorProto.FLOAT, shape)
    # Times 0 of the mean of the input, so that the input is not removed.
    nodes = [
        helper.make_node("ReduceMean", ["input.1"], ["mean"], keepdims=0),
        helper.make_node("Sub", ["mean", "mean"], ["nothing"]),
    ]
    given, made = [], []
    for number, values in enumerate(outputs):
        given.append(onnx.numpy_helper.from_array(values.astype(np.float32), f"c{number}"))
        nodes.append(helper.make_node("Add", [f"c{number}", "nothing"], [f"o{number}"]))
        made.append(
            helper.make_tensor_value_info(f"o{number}", onnx.TensorProto.FLOAT, values.shape)
        )
    graph = helper.make_graph(nodes, "scrfd", [image], made, given)
    opset = helper.make_opsetid("", 17)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=10), path)
    return path


def anchors(side: int = 64) -> list[np.ndarray]:
    """The nine outputs without a face: scores, boxes, points at strides 8, 16, 32."""
    counts = [2 * (side // stride) ** 2 for stride in (8, 16, 32)]
    return [np.zeros((count, size)) for size in (1, 4, 10) for count in counts]


def test_scrfd_reads_boxes_and_points_of_all_strides_and_drops_the_weaker_of_two(
    tmp_path: Path,
) -> None:
    pytest.importorskip("onnxruntime", reason="SCRFD needs the extra 'export'")
    outputs = anchors()
    place = 2 * (3 * 8 + 5) + 1  # stride 8: row 3, column 5, second anchor: (40, 24)
    for index, score in ((place, 0.9), (place - 1, 0.8)):  # the first anchor sees the same face
        outputs[0][index] = score
        outputs[3][index] = [1, 2, 1.5, 2.5]
        outputs[6][index] = np.arange(10) / 8
    outputs[2][0] = 0.7  # stride 32: (0, 0)
    outputs[5][0] = [0, 0, 0.5, 0.25]
    outputs[1][3] = 0.3  # below the threshold
    detector = open_detector(scrfd_file(tmp_path / "scrfd.onnx", outputs))
    first, second = detector.detect(np.zeros((128, 128, 3), np.uint8))  # twice the model's input
    assert first.score == pytest.approx(0.9)
    np.testing.assert_allclose(first.box, [64, 16, 104, 88])
    np.testing.assert_allclose(first.points.ravel() / 2, np.arange(10) + [40, 24] * 5)
    assert second.score == pytest.approx(0.7)
    np.testing.assert_allclose(second.box, [0, 0, 32, 16])


def test_a_wide_photograph_fills_the_top_of_scrfds_input(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="SCRFD needs the extra 'export'")
    outputs = anchors()
    outputs[0][2] = 0.9  # stride 8: row 0, column 1: (8, 0)
    outputs[3][2] = [1, 0, 1, 2]
    detector = open_detector(scrfd_file(tmp_path / "scrfd.onnx", outputs))
    (face,) = detector.detect(np.zeros((32, 128, 3), np.uint8))
    np.testing.assert_allclose(face.box, [0, 0, 32, 32])


def test_a_file_that_is_no_detector_is_one_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FACESCALE_DETECTOR", raising=False)
    with pytest.raises(FileNotFoundError, match=r"give --detector FILE or set FACESCALE_DETECTOR"):
        open_detector()
    with pytest.raises(FileNotFoundError, match=r"no\.onnx does not exist"):
        open_detector(tmp_path / "no.onnx")
    pytest.importorskip("onnxruntime")
    few = scrfd_file(tmp_path / "few.onnx", anchors()[:6])
    with pytest.raises(ValueError, match=r"few\.onnx has 6 outputs"):
        open_detector(few)
    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(ValueError, match=r"text\.onnx is not a model that onnxruntime reads"):
        open_detector(tmp_path / "text.onnx")
    pytest.importorskip("cv2")
    (tmp_path / "yunet.onnx").write_text("obj_8, but no model")
    monkeypatch.setenv("FACESCALE_DETECTOR", str(tmp_path / "yunet.onnx"))
    with pytest.raises(ValueError, match=r"yunet\.onnx is not a model that OpenCV reads"):
        open_detector()


def test_scrfds_outputs_of_yunet_are_yunets_faces(tmp_path: Path) -> None:
    pytest.importorskip("cv2", reason="YuNet needs the extra 'photos'")
    onnx = pytest.importorskip("onnx", reason="SCRFD needs the extra 'export'")
    pytest.importorskip("onnxruntime", reason="SCRFD needs the extra 'export'")
    file = shared_data("models/face_detection_yunet_2026may.onnx")
    onnx.save(to_scrfd(onnx.load(file)), tmp_path / "scrfd.onnx")
    yunet, scrfd = open_detector(file, 0.6), open_detector(tmp_path / "scrfd.onnx", 0.6)
    assert type(scrfd).__name__ == "Scrfd"
    found = 0
    for path in sorted(shared_data("photos").rglob("*_0001.jpg"))[:12]:
        image = np.zeros((640, 640, 3), np.uint8)  # both see it in its own pixels
        photo = decode_whole(path.read_bytes())
        image[: photo.shape[0], : photo.shape[1]] = photo
        both = [sorted(d.detect(image), key=lambda face: -face.score) for d in (scrfd, yunet)]
        for mine, theirs in zip(*both, strict=True):
            assert mine.score == pytest.approx(theirs.score, abs=1e-4)
            np.testing.assert_allclose(mine.points, theirs.points, atol=1e-2)
            np.testing.assert_allclose(mine.box, theirs.box, atol=1e-2)
            found += 1
    assert found >= 12
