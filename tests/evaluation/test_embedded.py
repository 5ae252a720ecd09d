"""Faces from folders and photographs, embedded by ranks in turn, written and read again."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from facescale.distributed import make_mesh
from facescale.evaluation import embedded
from facescale.evaluation.alignment import TEMPLATE, align
from facescale.evaluation.embedded import (
    person_templates,
    read_embedded,
    warn_of_other_model,
    write_embedded,
)
from facescale.evaluation.faces import find_points, open_faces, read_points
from facescale.evaluation.streaming import embed_in_turns, embed_stream
from facescale.evaluation.watchlist import make_watchlist


class Colours(nn.Module):
    """Mean colours of quarters of an image."""

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.adaptive_avg_pool2d(images.float(), 2).flatten(1)


def save_picture(path: Path, seed: int, size: int = 112) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(11):
        save_picture(tmp_path / "set" / f"person{number % 3}" / f"{number}.png", number)
    return tmp_path / "set"


def embed_as_rank(rank: int, folder: Path, batch_size: int) -> Any:
    faces = open_faces(folder)
    batches = embed_in_turns(
        Colours(), faces.decode_range, len(faces), make_mesh().world, batch_size
    )
    return torch.cat(list(batches)).numpy()


@pytest.mark.parametrize("batch_size", [1, 2, 4, 64])
def test_ranks_in_turn_give_all_rows_in_order(
    folder: Path, run_ranks: Callable[..., list[Any]], batch_size: int
) -> None:
    faces = open_faces(folder)
    images = torch.from_numpy(faces.decode_range(0, 11)).permute(0, 3, 1, 2)
    expected = (Colours()(images) + Colours()(images.flip(3))).numpy()
    np.testing.assert_allclose(embed_as_rank(0, folder, batch_size), expected, rtol=1e-6)
    for found in run_ranks(embed_as_rank, 3, folder, batch_size):
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_the_caller_of_a_stream_is_not_put_into_inference_mode(folder: Path) -> None:
    faces, network = open_faces(folder), Colours().train()
    for rows in embed_stream(network, faces.decode_range, 0, 11, batch_size=4):
        assert not torch.is_inference_mode_enabled()
        assert not rows.is_inference()
        assert not network.training
    assert network.training


def test_a_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    path, rows = tmp_path / "a.npz", torch.randn(7, 3)
    labels = np.array([0, 1, 1, 0, 2, 2, 2])
    people, model = ["ä", "b", "c"], {"model": "m", "flip": True}
    write_embedded(path, rows.split(3), 7, labels, people, [], model)
    found = read_embedded(path)
    np.testing.assert_array_equal(found.embeddings, rows.numpy())
    assert found.labels.tolist() == labels.tolist()
    assert found.people == people
    assert found.files == []
    assert found.model == model
    assert [file.name for file in tmp_path.iterdir()] == ["a.npz"]


@pytest.mark.parametrize(
    ("changed", "fault"),
    [
        ({"labels": np.array([0, 1, 3])}, "label 3, but there are 3 people"),
        ({"labels": np.array([0, 1, -1])}, "label -1, but there are 3 people"),
        ({"labels": np.zeros(2, np.int64)}, r"labels \(2,\) for 3 embeddings"),
        ({"labels": np.zeros(3)}, "Cannot cast"),
        ({"embeddings": np.ones(3, np.float32)}, r"embeddings \(3,\) are not rows"),
        ({"embeddings": np.ones((0, 2), np.float32)}, r"embeddings \(0, 2\) are not rows"),
        ({"files": np.array(["a"])}, "1 files for 3 embeddings"),
        ({"people": np.array("abc")}, "not a list"),
        ({"model": np.array(["[]"])}, "the model is not a set of options"),
    ],
)
def test_arrays_that_do_not_belong_together_are_refused(
    tmp_path: Path, changed: dict[str, Any], fault: str
) -> None:
    arrays: dict[str, Any] = {
        "embeddings": np.ones((3, 2)),  # in float64, as numpy makes them
        "labels": np.arange(3, dtype=np.int32),
        "people": np.array(["a", "b", "c"]),
        "files": np.array([], np.str_),
        "model": np.array(["{}"]),
    }
    np.savez(tmp_path / "a.npz", **arrays)
    found = read_embedded(tmp_path / "a.npz")
    assert found.embeddings.dtype == np.float32
    assert found.labels.dtype == np.int64
    np.savez(tmp_path / "b.npz", **arrays | changed)
    with pytest.raises(ValueError, match=f"b.npz is not a file of facescale embed: .*{fault}"):
        read_embedded(tmp_path / "b.npz")


def test_probes_of_another_model_are_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = read_embedded(gallery_file(tmp_path / "g.npz"))
    mine, other = (replace(found, model={"model": name, "flip": True}) for name in "ab")
    warn_of_other_model("p.npz", mine, mine)
    assert not caplog.text
    warn_of_other_model("p.npz", other, mine)
    assert "p.npz was not embedded as the gallery was: model is b and a;" in caplog.text


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    path.write_bytes(b"before")

    def broken() -> Any:
        yield torch.ones(2, 3)
        raise ValueError("image 3 is damaged")

    with pytest.raises(ValueError, match="image 3 is damaged"):
        write_embedded(path, broken(), 4, np.zeros(4, np.int64), [], [], {})
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"before"]
    with pytest.raises(ValueError, match=r"a.npz is not a file of facescale embed"):
        read_embedded(path)
    with pytest.raises(FileNotFoundError, match="facescale embed MODEL SOURCE OUT makes one"):
        read_embedded(tmp_path / "b.npz")


def test_points_align_photographs_and_their_lack_is_named(tmp_path: Path) -> None:
    photo = tmp_path / "ann" / "1.png"
    save_picture(photo, 0, size=200)
    save_picture(tmp_path / "bob" / "1.png", 1, size=200)
    points = 1.5 * TEMPLATE + 10
    names = ",".join(f"{axis}{i}" for i in range(5) for axis in "xy")
    numbers = ",".join(f"{number:.2f}" for number in points.flatten())
    table = tmp_path / "points.csv"
    table.write_text(f"file,detected,{names}\nann/1.png,1,{numbers}\nbob/1.png,0{',' * 10}\n")
    faces = open_faces(tmp_path, read_points(table))
    pixels = np.asarray(Image.open(photo))
    np.testing.assert_array_equal(
        faces.decode_range(0, 1)[0], align(pixels, np.round(points, 2).astype(np.float32))
    )
    with pytest.raises(ValueError, match=r"bob/1\.png: no five points are known of it"):
        faces.decode_range(1, 2)
    with pytest.raises(ValueError, match=r"ann/1\.png: 200 x 200 pixels, so not an aligned face"):
        open_faces(tmp_path).decode_range(0, 1)
    assert open_faces(tmp_path, stretch=True).decode_range(0, 1).shape == (1, 112, 112, 3)
    table.write_text("file,x0,y0\n")
    with pytest.raises(ValueError, match=r"points.csv: no column 'x1'"):
        read_points(table)


def points_csv(path: Path, lines: list[str]) -> Path:
    names = ",".join(f"{axis}{i}" for i in range(5) for axis in "xy")
    path.write_text("\n".join([f"file,{names}", *lines]), encoding="utf-8-sig")  # as Excel writes
    return path


def test_a_photograph_with_two_faces_in_the_list_is_refused(tmp_path: Path) -> None:
    one, two = (",".join(str(i + shift) for i in range(10)) for shift in (0, 90))
    path = tmp_path / "points.csv"
    read = read_points(points_csv(path, [f"a.jpg,{one}", f"b.jpg,{two}", f"a.jpg,{one}"]))
    assert read["a.jpg"].tolist() == np.arange(10).reshape(5, 2).tolist()
    with pytest.raises(ValueError, match=r"points.csv: line 3: a.jpg has other points"):
        read_points(points_csv(path, [f"a.jpg,{one}", f"a.jpg,{two}"]))
    with pytest.raises(ValueError, match=r"points.csv: line 2: could not convert"):
        read_points(points_csv(path, [f"a.jpg,{one[:-1]}x"]))
    with pytest.raises(ValueError, match=r"points.csv: field larger than field limit"):
        read_points(points_csv(path, ["a" * 200_000]))


def test_hidden_entries_of_a_folder_of_photographs_are_passed_over(tmp_path: Path) -> None:
    save_picture(tmp_path / "ann.png", 0)
    (tmp_path / "._ann.png").write_bytes(b"AppleDouble")
    (tmp_path / ".thumbnails").mkdir()
    assert open_faces(tmp_path).dataset.class_names == ["ann"]  # type: ignore[attr-defined]


def test_the_longest_known_name_wins() -> None:
    one, two = np.zeros((5, 2), np.float32), np.ones((5, 2), np.float32)
    assert find_points({"1.jpg": one, "ann/1.jpg": two}, "/data/ann/1.jpg") is two
    assert find_points({"1.jpg": one, "ann/1.jpg": two}, "/data/bob/1.jpg") is one


def test_a_folder_of_photographs_is_a_person_each(tmp_path: Path) -> None:
    for name in ("zoe", "ann"):
        save_picture(tmp_path / f"{name}.png", 0)
    faces = open_faces(tmp_path)
    faces.decode_range(0, 2)
    assert faces.labels.tolist() == [0, 1]
    assert [faces.dataset.describe(i) for i in range(2)] == [
        str(tmp_path / "ann.png"),
        str(tmp_path / "zoe.png"),
    ]
    with pytest.raises(FileNotFoundError, match=r"bob.png is not a file"):
        open_faces(tmp_path / "bob.png")


def gallery_file(path: Path, people: int = 8, images: int = 30, noise: float = 0.3) -> Path:
    random = np.random.default_rng(0)
    centres = random.normal(size=(people, 12))
    labels = np.repeat(np.arange(people), images)
    rows = centres[labels] + noise * random.normal(size=(people * images, 12))
    rows *= random.uniform(1, 20, (len(rows), 1))
    names = [f"person {i}" for i in range(people)]
    batches = torch.from_numpy(rows.astype(np.float32)).split(50)
    write_embedded(path, batches, len(rows), labels, names, [], {})
    return path


def test_a_template_is_the_direction_of_the_sum_of_directions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "ROWS_AT_ONCE", 7)
    gallery = read_embedded(gallery_file(tmp_path / "g.npz"))
    templates, labels = person_templates(gallery)
    rows = gallery.embeddings / np.linalg.norm(gallery.embeddings, axis=1, keepdims=True)
    for template, label in zip(templates.numpy(), labels, strict=True):
        total = rows[gallery.labels == label].sum(axis=0)
        np.testing.assert_allclose(template, total / np.linalg.norm(total), atol=1e-5)
    gallery.embeddings[100] = np.inf
    with pytest.raises(ValueError, match="embedding number 100 is zero or not finite"):
        person_templates(gallery)


def test_people_are_named_and_strangers_are_not(tmp_path: Path) -> None:
    gallery = read_embedded(gallery_file(tmp_path / "g.npz"))
    people = make_watchlist(gallery, fpir=0.01)
    templates, _ = person_templates(gallery)
    best = people.identify(3 * templates, k=2)
    assert [candidates[0].person for candidates in best] == gallery.people
    assert all(row[0].score > people.threshold > row[1].score for row in best)
    (stranger,) = people.identify(-templates.sum(dim=0, keepdim=True))
    assert stranger[0].score < people.threshold
    assert make_watchlist(gallery, threshold=0.7).threshold == 0.7
    with pytest.raises(ValueError, match=r"240 images .* cannot show an FPIR of 0.001"):
        make_watchlist(gallery, fpir=0.001)
    np.testing.assert_array_equal(gallery.embeddings.shape, (240, 12))
    gallery.embeddings[3] = 0
    with pytest.raises(ValueError, match="embedding number 3 is zero or not finite"):
        make_watchlist(gallery)
