"""What a data set has is counted, and drawn."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from damage import face, records, saved
from facescale.cli import main
from facescale.datasets.inspect import inspect
from facescale.datasets.pictures import draw_contact_sheet, plot_images_per_identity
from shared_data import shared_data


@pytest.fixture
def uneven(tmp_path: Path) -> Path:
    labels = [0, 1, 1, 1, 3, 3]
    images = [(face(i, 128 if i == 5 else 112), label) for i, label in enumerate(labels)]
    return records(tmp_path / "uneven", images, 5)


def test_images_of_each_identity_are_counted(uneven: Path) -> None:
    found = inspect(uneven)
    assert found.counts.tolist() == [1, 3, 0, 2, 0]
    assert found.bins() == [(0, 0, 2), (1, 1, 1), (2, 2, 1), (3, 3, 1)]
    assert dict(found.sizes) == {(112, 112): 5, (128, 128): 1}
    assert found.facts["property"] == "'5,112,112'"
    assert found.facts["record 0"] == "identity records are 7 to 11"
    told = found.as_values()
    assert (told["lowest_label"], told["highest_label"]) == (0, 3)
    assert told["classes_without_images"] == 2


def test_no_image_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("facescale.datasets.walk.examine", lambda *_: pytest.fail("decoded"))
    images = [face(0), saved(Image.new("RGB", (128, 64)), "PNG"), b"no image"]
    found = inspect(records(tmp_path, [(image, 0) for image in images], 1))
    assert dict(found.sizes) == {(112, 112): 1, (128, 64): 1, (0, 0): 1}


def test_wide_counts_come_in_doubling_bins(uneven: Path) -> None:
    found = inspect(uneven)
    found.counts = np.array([0, 3, 4, 7, 8, 100])
    powers = [(8, 15, 1), (16, 31, 0), (32, 63, 0), (64, 100, 1)]
    assert found.bins() == [(0, 0, 1), (3, 3, 1), (4, 7, 2), *powers]
    found.counts[:] = 0
    assert found.bins() == [(0, 0, 6), (1, 1, 0)]


def test_damaged_records_and_wrong_labels_are_counted(uneven: Path) -> None:
    (uneven / "property").write_text("3,112,112\n")
    found = inspect(uneven)
    assert (found.out_of_range, found.unreadable) == (2, 0)
    assert found.counts.tolist() == [1, 3, 0]


def test_the_command_draws_and_tells(
    uneven: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "pictures"
    main(["data", "inspect", str(uneven), "--output", str(output), "--seed", "3"])
    said = capsys.readouterr().out
    assert "6 images of 5 people, 2 of them without images" in said
    assert "images of an identity: 1 to 3, median 2, mean 2.0" in said
    with Image.open(output / "faces.png") as sheet:
        assert sheet.size[1] > 3 * 112
    with Image.open(output / "images_per_identity.png") as plot:
        assert plot.size[0] > 500
    main(["data", "inspect", str(uneven), "--json"])
    assert json.loads(capsys.readouterr().out)["num_sizes"] == 2


def test_a_contact_sheet_is_a_function_of_the_seed(uneven: Path, tmp_path: Path) -> None:
    found = inspect(uneven)
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        draw_contact_sheet(tmp_path / name, found, seed)
    a, b, c = ((tmp_path / name).read_bytes() for name in "abc")
    assert a == b
    assert a != c
    found.counts[:] = 0
    plot_images_per_identity(tmp_path / "none.png", found)  # nothing to draw is no error


def test_real_sets_of_each_layout() -> None:
    cfp = inspect(shared_data("cfp324"))
    assert set(cfp.counts.tolist()) == {14}
    assert cfp.facts["record 0"] == "identity records are 4,537 to 4,860"
    mxnet = inspect(shared_data("golden/mxnet_rec"))
    assert mxnet.facts["layout"].startswith("im2rec")
    assert mxnet.counts.tolist() == [5] * 12
