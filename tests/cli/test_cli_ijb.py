"""`facescale ijb`: from lists, images and a model to figures, as one command."""

import json
from pathlib import Path

import numpy as np
import pytest

from facescale.cli import main
from mistakes import refused
from shared_data import shared_data


def test_stored_embeddings_are_judged_and_the_figures_written(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    root, images = shared_data("golden/ijb"), shared_data("photos")
    files = {name: str(tmp_path / name) for name in ("roc.png", "scores.npy")}
    where = [str(root / "embeddings.npy"), str(root), "--images", str(images)]
    main(["ijb", *where, "--plot", files["roc.png"], "--scores", files["scores.npy"]])
    said = capsys.readouterr().out
    assert "IJB-C: 240 images, 160 templates, 6,546 pairs" in said
    assert "TPIR at FPIR 0.01" in said
    assert "0.4068" in said
    assert "…" not in said
    main(["ijb", *where, "--json"])
    figures = json.loads(capsys.readouterr().out)
    expected = json.loads((root / "expected.json").read_text())
    assert [row["insightface"] for row in figures["tar_at_far"]] == list(
        expected["tar_at_far"].values()
    )
    assert np.load(files["scores.npy"]).shape == (6546,)
    assert Path(files["roc.png"]).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.npy", "{root}"], "missing.npy is not a file; give the embeddings"),
        (["missing.onnx", "{root}"], "missing.onnx is not a file; give an ONNX graph"),
        (["broken.onnx", "{root}"], "broken.onnx is not an ONNX graph"),
        (["missing.npy", "nowhere"], "nowhere/meta has neither ijbb nor ijbc"),
        (["model.safetensors", "{root}", "--mean", "1"], "--mean and --std are for ONNX files"),
        (["broken.onnx", "{root}", "--batch_size", "0"], "--batch_size must be at least 1"),
        (["missing.npy", "{root}", "--scores", "a.txt"], "a.txt: give a name that ends in .npy"),
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
    Path("broken.onnx").write_bytes(b"no graph")
    root = str(shared_data("golden/ijb"))
    images = str(shared_data("photos"))
    given = [argument.format(root=root) for argument in arguments]
    assert message in refused(capsys, "ijb", *given, "--images", images)
