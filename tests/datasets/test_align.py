"""`facescale data align`: with a painted face anywhere, with YuNet on real photographs."""

import csv
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from facescale.cli import data_align, main
from facescale.data.images import decode_whole
from facescale.datasets import align as align_module
from facescale.datasets.alignreport import Journal, read_rows
from facescale.evaluation.alignment import TEMPLATE, align
from facescale.evaluation.faces import open_faces, read_points
from facescale.files import write_whole
from painted_faces import Squares, painted
from shared_data import shared_data

Run = Callable[..., dict[str, Any]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command on `tmp_path/photos` with a detector of painted squares."""
    monkeypatch.setattr(data_align, "open_chosen_detector", lambda chosen: Squares())
    (tmp_path / "model.onnx").write_bytes(b"any")
    monkeypatch.setenv("FACESCALE_DETECTOR", str(tmp_path / "model.onnx"))
    (tmp_path / "photos").mkdir()

    def call(*options: str, out: str = "faces") -> dict[str, Any]:
        main(["data", "align", str(tmp_path / "photos"), str(tmp_path / out), *options, "--json"])
        said = capsys.readouterr().out
        return json.loads(said) if said else {}

    return call


def save(path: Path, pixels: np.ndarray, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


def rows_of(folder: Path) -> dict[str, dict[str, str]]:
    with (folder / "report.csv").open(newline="") as file:
        return {row["file"]: row for row in csv.DictReader(file)}


def test_faces_get_the_folders_of_the_photographs_and_lie_on_the_template(
    run: Run, tmp_path: Path
) -> None:
    image = painted((50, 40, 112))
    for name in ("ada/1.png", "deep/er/2.png", "3.png"):
        save(tmp_path / "photos" / name, image)
    save(tmp_path / "photos" / ".hidden.png", image)
    (tmp_path / "photos" / "notes.txt").write_text("no photograph")
    summary = run("--format", "png")
    assert (summary["photographs"], summary["aligned"]) == (3, 3)
    faces = sorted(
        p.relative_to(tmp_path / "faces").as_posix() for p in tmp_path.rglob("faces/**/*.png")
    )
    assert faces == ["3.png", "ada/1.png", "deep/er/2.png"]
    cut = decode_whole((tmp_path / "faces" / "3.png").read_bytes())
    assert (cut == image[40:152, 50:162]).all()
    row = rows_of(tmp_path / "faces")["ada/1.png"]
    points = [float(row[f"{axis}{i}"]) for i in range(5) for axis in "xy"]
    np.testing.assert_allclose(points, (TEMPLATE + np.array([50, 40])).ravel(), atol=0.01)


def test_photographs_with_several_faces_or_none_are_listed(run: Run, tmp_path: Path) -> None:
    save(tmp_path / "photos" / "one.png", painted((20, 20, 100)))
    save(tmp_path / "photos" / "two.png", painted((20, 20, 90), (140, 50, 100)))
    save(tmp_path / "photos" / "none.png", painted())
    (tmp_path / "photos" / "broken.jpg").write_bytes(b"\xff\xd8 no image")
    summary = run("--face", "largest")
    assert summary["chosen of several"] == summary["no face"] == summary["unreadable"] == 1
    assert summary["aligned"] == 2
    rows = rows_of(tmp_path / "faces")
    assert rows["two.png"]["faces"] == "2"
    assert float(rows["two.png"]["x0"]) > 140
    assert (rows["none.png"]["result"], rows["none.png"]["detected"]) == ("no face", "0")
    assert "not a readable image" in rows["broken.jpg"]["detail"]
    assert not list(tmp_path.glob("faces/none*")) + list(tmp_path.glob("faces/broken*"))
    only = run("--face", "only", out="only")
    assert only["several faces"] == 1
    assert not (tmp_path / "only" / "two.jpg").exists()
    # The report can be given as --points: it says which photographs have no face.
    known = read_points(tmp_path / "faces" / "report.csv")
    assert sorted(known) == ["one.png", "two.png"]


def kinds() -> dict[str, bytes]:
    """The painted face as files of every kind that is read, each upright when it is decoded."""
    image = painted((60, 40, 120))
    whole = Image.fromarray(image)
    grey = np.asarray(whole.convert("L"))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera lay on its side
    files: dict[str, tuple[Image.Image, dict[str, Any]]] = {
        "exif.jpg": (Image.fromarray(np.rot90(image)), {"exif": exif, "quality": 95}),
        "grey.jpg": (Image.fromarray(grey), {"quality": 95}),
        "cmyk.jpg": (whole.convert("CMYK"), {"quality": 95}),
        "palette.png": (whole.quantize(8), {}),
        "alpha.png": (whole.convert("RGBA"), {}),
        "deep.png": (Image.fromarray(grey.astype(np.uint16) * 257), {}),
        "new.webp": (whole, {"quality": 95}),
        "huge.jpg": (whole.resize((3000, 2000)), {}),
    }
    made = {}
    for name, (picture, options) in files.items():
        file = io.BytesIO()
        picture.save(file, {"jpg": "JPEG", "png": "PNG"}.get(name[-3:], "WEBP"), **options)
        made[name] = file.getvalue()
    return made


def test_every_kind_of_file_gives_the_same_upright_face(run: Run, tmp_path: Path) -> None:
    for name, content in kinds().items():
        (tmp_path / "photos" / name).write_bytes(content)
    summary = run("--format", "png")
    assert summary["aligned"] == summary["photographs"] == 8
    expected = align(painted((60, 40, 120)), TEMPLATE * (120 / 112) + np.array([60, 40])).astype(
        int
    )
    for path in (tmp_path / "faces").glob("*.png"):
        found = decode_whole(path.read_bytes()).astype(int)
        colours = path.stem not in ("grey", "deep")
        wanted = expected if colours else (expected @ [0.299, 0.587, 0.114])[..., None]
        assert np.abs(found - wanted).mean() < 8, path  # nearly all of it at the edges


def test_a_picture_with_too_many_pixels_is_listed_and_not_decoded(run: Run, tmp_path: Path) -> None:
    save(tmp_path / "photos" / "vast.png", np.zeros((6000, 6000), np.uint8))
    assert run()["unreadable"] == 1
    assert "6000 x 6000 is more than" in rows_of(tmp_path / "faces")["vast.png"]["detail"]


def test_a_second_run_keeps_the_faces_and_takes_up_what_is_new(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(40):
        save(tmp_path / "photos" / f"{number:02}.png", painted((20, 20, 60 + number)))
    calls: list[str] = []

    def stop_early(path: Path, parts: Any) -> None:
        if len(calls) == 25:
            raise OSError(28, "disk full", str(path))
        calls.append(path.name)
        write_whole(path, parts)

    monkeypatch.setattr(align_module, "write_whole", stop_early)
    with pytest.raises(SystemExit):
        run("--threads", "1")
    journal = tmp_path / "faces" / "align-0-of-1.csv"
    kept = len(list(read_rows(journal)))
    assert 0 < kept <= 25
    with journal.open("a") as file:
        file.write("39.png,1,ali")  # a line that the end of the process cut

    def count(path: Path, parts: Any) -> None:
        calls.append(path.name)
        write_whole(path, parts)

    monkeypatch.setattr(align_module, "write_whole", count)
    (tmp_path / "photos" / "40.png").write_bytes((tmp_path / "photos" / "00.png").read_bytes())
    (tmp_path / "faces" / "00.jpg").unlink()
    assert run()["aligned"] == 41
    assert len(calls) == 25 + 41 - kept + 1
    assert sorted(rows_of(tmp_path / "faces")) == [f"{number:02}.png" for number in range(41)]
    with pytest.raises(SystemExit):
        run("--face", "central")


def test_ranks_share_the_photographs_and_the_last_one_writes_the_report(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(30):
        save(tmp_path / "photos" / f"p{number % 4}" / f"{number}.png", painted((20, 20, 80)))
    monkeypatch.setenv("WORLD_SIZE", "3")
    counts = []
    for rank in (2, 0, 1):
        monkeypatch.setenv("RANK", str(rank))
        summary = run()
        counts.append(len(list(tmp_path.glob("faces/*/*.jpg"))))
        assert bool(summary) == (rank == 1)
    assert summary["aligned"] == counts[-1] == 30
    assert 0 < counts[0] < counts[1] < 30
    assert len(rows_of(tmp_path / "faces")) == 30
    assert not list(tmp_path.glob("faces/align-*"))


def test_a_report_that_was_cut_short_is_written_by_the_next_run(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "photos" / "a.png", painted((20, 20, 80)))

    def die(*arguments: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "_merge", die)
        patch.setattr(Path, "rmdir", die)  # as where the process is killed
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            run()
    assert run()["aligned"] == 1
    assert list(rows_of(tmp_path / "faces")) == ["a.png"]
    assert not list(tmp_path.glob("faces/align-*"))


def test_links_that_lead_around_in_a_circle_are_named(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path / "photos" / "a" / "1.png", painted((20, 20, 80)))
    (tmp_path / "photos" / "b").symlink_to(tmp_path / "photos" / "a")
    assert run()["aligned"] == 2  # a link to another folder is followed
    for name in ("up", "again"):
        (tmp_path / "photos" / "a" / name).symlink_to(tmp_path / "photos")
    with pytest.raises(SystemExit):
        run()
    assert "a/again is a link to a folder that it lies in" in capsys.readouterr().err


def test_a_pipe_is_listed_and_not_waited_for(run: Run, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "photos" / "pipe.jpg")
    assert run()["unreadable"] == 1
    assert "is not a regular file" in rows_of(tmp_path / "faces")["pipe.jpg"]["detail"]


def test_photographs_that_differ_in_their_suffix_get_a_face_each(run: Run, tmp_path: Path) -> None:
    for name in ("a.png", "a.bmp", "b.png"):
        save(tmp_path / "photos" / name, painted((20, 20, 80)))
    run()
    assert sorted(p.name for p in tmp_path.glob("faces/*.jpg")) == [
        *("a.bmp.jpg", "a.png.jpg", "b.jpg"),
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "out"], "nowhere is not a folder"),
        (["photos", "photos/out"], "photos/out lies in photos"),
        (["photos", "full"], "full is not empty"),
        (["empty", "out"], "empty has no photographs (.jpg .jpeg"),
        (["photos", "out", "--longest", "3"], "--longest must be at least 32"),
        (["photos", "out", "--threads", "0"], "--threads must be at least 1, got 0"),
    ],
)
def test_a_mistake_is_one_clear_line(
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "full" / "x.png", painted())
    save(tmp_path / "photos" / "1.png", painted())
    save(tmp_path / "empty" / "ann" / "1.png", painted())
    (tmp_path / "empty" / "ann" / "1.png").rename(tmp_path / "empty" / "ann" / "1.heic")
    with pytest.raises(SystemExit):
        main(["data", "align", *arguments])
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert message in said
    assert not (tmp_path / "out").exists()


def test_the_missing_package_is_named_with_its_extra(tmp_path: Path) -> None:
    program = "import sys; sys.modules['cv2'] = None; from facescale.cli import main; main()"
    (tmp_path / "yunet.onnx").write_text("obj_8")
    (tmp_path / "photos").mkdir()
    command = ["data", "align", "photos", "out", "--detector", "yunet.onnx"]
    done = subprocess.run(
        [sys.executable, "-c", program, *command],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "pip install 'facescale[photos]'" in done.stderr


def test_yunet_finds_the_landmarks_and_the_faces_of_one_person_verify(tmp_path: Path) -> None:
    pytest.importorskip("cv2", reason="YuNet needs the extra 'photos'")
    pytest.importorskip("onnxruntime", reason="ONNX files need the extra 'export'")
    photos = shared_data("photos")
    detector = shared_data("models/face_detection_yunet_2026may.onnx")
    known = read_points(shared_data("photos_landmarks.csv"))
    main(["data", "align", str(photos), str(tmp_path / "faces"), "--detector", str(detector)])
    found = read_points(tmp_path / "faces" / "report.csv")
    assert set(found) >= set(known)
    distance = [np.abs(found[name] - points).max() for name, points in known.items()]
    assert np.mean(np.array(distance) < 2) >= 0.95

    from facescale.evaluation.embedding import embed_images
    from facescale.evaluation.verification import roc
    from facescale.models.onnx_network import OnnxNetwork

    faces = open_faces(tmp_path / "faces")
    network = OnnxNetwork(str(shared_data("models/mobilefacenet_reference.onnx")), 127, 128)
    rows, _ = embed_images(network, faces.decode_range, len(faces))
    unit = rows / rows.norm(dim=1, keepdim=True)
    pairs = np.array(list(combinations(range(len(faces)), 2)))
    same = faces.labels[pairs[:, 0]] == faces.labels[pairs[:, 1]]
    cosine = (unit @ unit.T).numpy()[pairs[:, 0], pairs[:, 1]]
    curve = roc(cosine, same)
    assert curve.eer < 0.02
    assert np.median(cosine[same]) > 0.4 > np.quantile(cosine[~same], 0.999)
