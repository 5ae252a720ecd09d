"""Parts added from outside `src/`, each one object registered by one line, in real runs.

The code is that of docs/extending.md, so what the page shows is what works.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import facescale
from facescale import backbones
from facescale.backbones import registry
from facescale.cli import main
from facescale.data import dataset
from facescale.data.images import Sample
from facescale.data.pairs import PairSet, save_pairs
from facescale.head import walks
from facescale.head.margins import target
from facescale.models import formats
from facescale.training.trackers import tracker

PAGE = Path(__file__).parents[1] / "docs" / "extending.md"

Load = Callable[[str], dict[str, Any]]


@pytest.fixture
def load() -> Iterator[Load]:
    """`load("A tracker")` runs the code under that title; what it registers is gone after."""
    registries: list[Any] = [
        *(tracker.TRACKERS, dataset.FORMATS, formats.READERS),
        *(registry._BUILDERS, target._FACTORIES, walks.WALKS),
    ]
    before = [known.copy() for known in registries]
    (code,) = re.findall(r"^```python\n(.*?)```", PAGE.read_text(), re.DOTALL | re.M)
    imports, *parts = re.split(r"^# (.*?): .*\n", code, flags=re.M)
    blocks = dict(zip(parts[::2], parts[1::2], strict=True))

    def run(title: str) -> dict[str, Any]:
        names: dict[str, Any] = {}
        exec(imports, names)
        exec(blocks[title], names)
        return names

    yield run
    for known, kept in zip(registries, before, strict=True):
        known.clear()
        known.extend(kept) if isinstance(kept, list) else known.update(kept)


def test_the_page_is_short() -> None:
    assert PAGE.read_text().count("\n") <= 60


def images(count: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(0).integers(256, size=(count, 112, 112, 3), dtype=np.uint8)


def train(folder: Path, *options: str, backbone: str = "y1") -> None:
    """Three steps of the real trainer."""
    sizes = "--data.num_classes 20 --data.num_images 64" if "--data.path" not in options else ""
    main(
        [
            *f"train synthetic {sizes} --backbone.name {backbone} --train.batch_size 4".split(),
            *f"--train.steps 3 --device cpu --log_every 1 --output {folder / 'run'}".split(),
            *options,
        ]
    )


def test_a_backbone(tmp_path: Path, load: Load) -> None:
    load("A backbone")
    train(tmp_path, backbone="pooled")
    weights = load_file(tmp_path / "run" / "model.safetensors")
    assert weights["fc.weight"].shape == (32, 192)
    restored = facescale.load_backbone(tmp_path / "run" / "model.safetensors")
    assert restored.spec == {"name": "pooled", "embedding_dim": 32}


def test_a_margin_that_needs_the_norm(tmp_path: Path, load: Load) -> None:
    load("A margin")
    train(tmp_path, "--head.margin.name", "by_norm", "--head.margin.m", "0.2")
    assert (tmp_path / "run" / "model.safetensors").exists()
    embeddings = torch.randn(4, 8, dtype=torch.float64, requires_grad=True)
    head = facescale.MarginHead(
        5, 8, target.make_margin("by_norm", m=0.3), 8.0, dtype=torch.float64
    )
    head(embeddings, torch.arange(4), lr=0.0).backward()
    assert embeddings.grad is not None
    radial = (embeddings.grad * embeddings).sum(1)
    assert (radial.abs() > 1e-4).all()  # a margin of the cosine alone leaves the length as it is


def test_a_walk(tmp_path: Path, load: Load) -> None:
    counted = load("A walk")["Counted"]
    train(tmp_path)
    assert counted.steps == 3


def test_a_tracker(tmp_path: Path, load: Load, capsys: pytest.CaptureFixture[str]) -> None:
    load("A tracker")
    save_pairs(tmp_path / "few.bin", PairSet("few", list(images(40)), np.tile([True, False], 10)))
    train(tmp_path, "--trackers", "best", "--evaluation.sets", str(tmp_path / "few.bin"))
    assert re.search(r"step 3: few [01]\.\d{4}\n", capsys.readouterr().out)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()  # it alone was asked for


def test_a_dataset_format(tmp_path: Path, load: Load, capsys: pytest.CaptureFixture[str]) -> None:
    faces = load("A dataset format")["NpzFaces"]
    path = tmp_path / "faces.npz"
    np.savez(path, images=images(12), labels=np.arange(12) % 3)
    opened = dataset.open_dataset(path, num_classes=3)
    assert isinstance(opened, faces)
    assert isinstance(opened.read(4), Sample)
    train(tmp_path, "--data.path", str(path))
    assert "Epoch: 1   Global Step: 3" in capsys.readouterr().out  # 12 images, 4 a step


def test_a_format_of_weights(tmp_path: Path, load: Load) -> None:
    load("A format of weights")
    theirs = backbones.build("y1", generator=torch.Generator().manual_seed(7))
    path = tmp_path / "model.npz"
    np.savez(path, **{name: value.numpy() for name, value in theirs.state_dict().items()})
    train(tmp_path, "--backbone.weights", str(path), "--optim.lr", "1e-12")
    ours = load_file(tmp_path / "run" / "model.safetensors")
    for name, value in theirs.named_parameters():
        assert torch.allclose(ours[name], value, atol=1e-6), name
