"""IJB as InsightFace's own code answers on a small set, and the parts by brute force."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_curve
from torch import Tensor, nn

from facescale.distributed import make_mesh
from facescale.evaluation.ijb import IjbSet, mates, open_ijb
from facescale.evaluation.templates import (
    IjbResult,
    Weighting,
    pool,
    run_ijb,
    run_ijb_from_rows,
)
from facescale.models.onnx_network import OnnxNetwork
from shared_data import shared_data


@pytest.fixture
def golden() -> IjbSet:
    return open_ijb(shared_data("golden/ijb"), shared_data("photos"))


def assert_as_insightface(found: IjbResult) -> None:
    expected = json.loads(shared_data("golden/ijb/expected.json").read_text())
    assert found.num_images == expected["images"]
    assert found.num_templates == expected["templates"]
    assert len(found.scores) == expected["pairs"]
    first = expected["first_scores"]
    np.testing.assert_allclose(found.scores[: len(first)], first, rtol=0, atol=1e-5)
    assert found.scores.sum() == pytest.approx(expected["score_sum"], abs=1e-5 * len(found.scores))
    assert found.roc.auc == pytest.approx(expected["auc"], abs=1e-12)
    tars = {float(far): tar for far, tar in expected["tar_at_far"].items()}
    assert {tar.far: tar.insightface for tar in found.tars} == tars
    assert found.closed is not None
    said = [f"top{k} = {rate}" for k, rate in found.closed.ranks.items()]
    assert said == expected["identification"][:3]
    for operating, line in zip(found.closed.operating, expected["identification"][3:], strict=True):
        far, tpir, threshold = (float(part) for part in line.split()[2::3])
        assert operating.fpir == far
        assert operating.tpir == pytest.approx(tpir, abs=1e-10)
        assert operating.threshold == pytest.approx(threshold, abs=1e-5)


def test_stored_embeddings_give_the_answers_of_insightface(golden: IjbSet) -> None:
    rows = np.load(shared_data("golden/ijb/embeddings.npy"), mmap_mode="r")
    assert_as_insightface(run_ijb_from_rows(golden, rows))


def test_photographs_give_the_answers_of_insightface(golden: IjbSet) -> None:
    pytest.importorskip("onnxruntime", reason="ONNX files need the extra 'export'")
    network = OnnxNetwork(shared_data("models/mobilefacenet_reference.onnx"), 127, 128)
    assert_as_insightface(run_ijb(golden, network, batch_size=50))


class Thumbnail(nn.Module):
    """The image itself, small and without its mean."""

    def forward(self, images: Tensor) -> Tensor:
        small = nn.functional.avg_pool2d(images.float(), 8).flatten(1)
        return small - small.mean(dim=1, keepdim=True)


def judge_as_rank(rank: int, ijb: IjbSet) -> tuple[Any, ...]:
    result = run_ijb(ijb, Thumbnail(), batch_size=16, world=make_mesh().world)
    assert result.closed is not None
    return result.scores, result.closed.ranks


def test_the_ranks_share_the_work_and_agree(
    golden: IjbSet, run_ranks: Callable[..., list[Any]]
) -> None:
    (alone, ranks) = judge_as_rank(0, golden)
    assert alone.std() > 0.01
    for scores, found in run_ranks(judge_as_rank, 3, golden):
        np.testing.assert_allclose(scores, alone, rtol=0, atol=1e-12)
        assert found == ranks


def made_set(root: Path, images: int = 30, seed: int = 0) -> Path:
    """A set of noise: three subjects, three templates each, medias of one to three images."""
    random = np.random.default_rng(seed)
    meta = root / "meta"
    meta.mkdir(parents=True)
    (root / "loose_crop").mkdir()
    templates = np.sort(np.append(np.arange(9), random.integers(0, 9, images - 9))) + 1
    media = random.integers(0, 4, images) + 10
    points = "30 40 60 40 45 60 35 80 58 80"
    names = [f"{i}.jpg" for i in range(images)]
    scores = random.uniform(0.5, 1, images)
    lists = {
        "name_5pts_score.txt": [
            f"{name} {points} {score:.4f}" for name, score in zip(names, scores, strict=True)
        ],
        "face_tid_mid.txt": [
            f"{name} {t} {m}" for name, t, m in zip(names, templates, media, strict=True)
        ],
        "template_pair_label.txt": [
            f"{a} {b} {int((a - 1) // 3 == (b - 1) // 3)}"
            for a in range(1, 10)
            for b in range(1, a)
        ],
        "1N_gallery_S1.csv": ["TEMPLATE_ID,SUBJECT_ID", "1,0", "4,1"],
        "1N_gallery_S2.csv": ["TEMPLATE_ID,SUBJECT_ID", "7,2"],
        "1N_probe_mixed.csv": ["TEMPLATE_ID,SUBJECT_ID", "9,2", "2,0", "5,1", "8,2"],
    }
    for name, lines in lists.items():
        (meta / f"ijbb_{name}").write_text("\n".join(lines) + "\n")
    return root


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("detector", [True, False])
def test_pooling_is_a_sum_over_medias_of_means(
    tmp_path: Path, flip: bool, norm: bool, detector: bool
) -> None:
    ijb = open_ijb(made_set(tmp_path))
    rows = np.random.default_rng(1).normal(size=(len(ijb), 12)).astype(np.float32)
    found = run_ijb_from_rows(ijb, rows, Weighting(flip, norm, detector)).scores
    features = (rows[:, :6] + rows[:, 6:] if flip else rows[:, :6]).astype(np.float64)
    if not norm:
        features /= np.linalg.norm(features, axis=1, keepdims=True)
    if detector:
        features *= ijb.scores[:, None]

    def template(number: int) -> np.ndarray[Any, Any]:
        inside = ijb.templates == number
        total = sum(
            features[inside & (ijb.media == media)].mean(axis=0) for media in set(ijb.media[inside])
        )
        unit: np.ndarray[Any, Any] = total / np.linalg.norm(total)
        return unit

    expected = [template(a) @ template(b) for a, b in ijb.pairs]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_tar_is_read_as_the_nearest_point_of_scikit_learn(tmp_path: Path) -> None:
    ijb = open_ijb(made_set(tmp_path))
    rows = np.random.default_rng(2).normal(size=(len(ijb), 12)).astype(np.float32)
    result = run_ijb_from_rows(ijb, rows)
    far, tar, _ = roc_curve(ijb.same, result.scores)
    far, tar = far[::-1], tar[::-1]
    for row in result.tars:
        assert row.insightface == tar[np.argmin(np.abs(far - row.far))]


def test_lists_that_do_not_belong_together_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="loose_crop is not a folder"):
        open_ijb(tmp_path / "nowhere")
    (tmp_path / "empty" / "loose_crop").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="neither ijbb nor ijbc"):
        open_ijb(tmp_path / "empty")
    meta = made_set(tmp_path / "set") / "meta"
    pairs = meta / "ijbb_template_pair_label.txt"
    kept = pairs.read_text()
    pairs.write_text(kept + "1 77 0\n")
    with pytest.raises(ValueError, match="names template 77, of which"):
        open_ijb(meta.parent)
    pairs.write_text(kept + "1 x 0\n")
    with pytest.raises(ValueError, match="is damaged: could not convert string"):
        open_ijb(meta.parent)
    pairs.write_text(kept)
    names = meta / "ijbb_name_5pts_score.txt"
    names.write_text(names.read_text().replace("3.jpg", "99.jpg", 1))
    with pytest.raises(ValueError, match="do not name the same images"):
        open_ijb(meta.parent)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("face_tid_mid.txt", "", "has no line; fetch"),
        ("template_pair_label.txt", "1 2 0\n", "0 ones and 1 zeros in 1 lines"),
        ("template_pair_label.txt", "1 2 1\n1 4 0\n1 5 2\n", "1 ones and 1 zeros in 3 lines"),
        ("1N_gallery_S2.csv", "TEMPLATE_ID,SUBJECT_ID\n", "S2.csv has no line"),
        ("1N_probe_mixed.csv", "T,S\n9,2\n2,5\n", "subject 5 of a probe is 0 times in the gallery"),
        ("1N_probe_mixed.csv", "T,S\n9,2\n9,1\n", "gives template 9 to more than one subject"),
    ],
)
def test_lists_that_cannot_be_judged_are_known_before_an_image_is_read(
    tmp_path: Path, name: str, text: str, message: str
) -> None:
    root = made_set(tmp_path)
    (root / "meta" / f"ijbb_{name}").write_text(text)
    with pytest.raises(ValueError, match=message):
        open_ijb(root)


def test_missing_images_are_counted_before_the_first_is_embedded(tmp_path: Path) -> None:
    ijb = open_ijb(made_set(tmp_path))
    for name in ijb.files[:-2]:
        (ijb.folder / name).touch()
    with pytest.raises(FileNotFoundError, match=r"2 of 30 images do not exist, such as .*28\.jpg"):
        run_ijb(ijb, Thumbnail(), batch_size=4)


def test_figures_that_do_not_exist_are_null_in_json(tmp_path: Path) -> None:
    root = made_set(tmp_path)
    (root / "meta" / "ijbb_1N_probe_mixed.csv").write_text("T,S\n2,0\n5,1\n")
    ijb = open_ijb(root)
    rows = np.tile(np.eye(3, dtype=np.float32)[ijb.templates % 3], 2)  # people alike, not a person
    figures = json.loads(json.dumps(run_ijb_from_rows(ijb, rows).figures(), allow_nan=False))
    assert figures["tar_at_far"][0]["threshold"] is None  # above the highest score
    first, second = figures["open_set"]
    assert (first["num_unmated"], first["operating"][0]["threshold"]) == (0, None)
    assert (second["num_mated"], second["operating"][0]["tpir"]) == (0, None)
    assert first["operating"][0]["tpir"] is None  # not 0: no FPIR is known


def test_stored_numbers_of_every_kind_are_added_as_floats(tmp_path: Path) -> None:
    ijb = open_ijb(made_set(tmp_path))
    rows: Any = np.random.default_rng(3).integers(-128, 128, (30, 12)).astype(np.int8)
    found, expected = (run_ijb_from_rows(ijb, r).scores for r in (rows, rows.astype(np.float32)))
    np.testing.assert_array_equal(found, expected)
    with pytest.raises(ValueError, match=r"rows \(30, 12\) of \|S1 do not fit"):
        run_ijb_from_rows(ijb, rows.astype("S1"))


def test_rows_without_mirror_images_are_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ijb = open_ijb(made_set(tmp_path))
    rows = np.random.default_rng(4).normal(size=(30, 512)).astype(np.float32)
    run_ijb_from_rows(ijb, np.concatenate([rows, rows + 0.5 * rows[::-1]], axis=1))
    assert not caplog.text
    run_ijb_from_rows(ijb, rows)
    assert "the two halves of a row have a mean cosine of" in caplog.text


def test_a_set_without_lists_of_1n_is_verified_only(tmp_path: Path) -> None:
    root = made_set(tmp_path)
    (root / "meta" / "ijbb_1N_gallery_S2.csv").unlink()
    ijb = open_ijb(root)
    result = run_ijb_from_rows(ijb, np.ones((30, 4), np.float32) + np.eye(30, 4, dtype=np.float32))
    assert result.closed is None
    assert result.open == []
    shutil.rmtree(root / "loose_crop")


def test_embeddings_of_another_shape_or_without_direction_are_refused(tmp_path: Path) -> None:
    ijb = open_ijb(made_set(tmp_path))
    with pytest.raises(ValueError, match=r"\(29, 4\) of float32 do not fit IJB-B with 30 images"):
        run_ijb_from_rows(ijb, np.ones((29, 4), np.float32))
    with pytest.raises(ValueError, match="9 of 9 templates have no direction"):
        pool(ijb, [torch.zeros(30, 4)], 0, Weighting())


def test_a_damaged_image_is_named(tmp_path: Path) -> None:
    ijb = open_ijb(made_set(tmp_path))
    (ijb.folder / "0.jpg").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"0\.jpg: not a readable image"):
        ijb.decode_range(0, 1)
    with pytest.raises(FileNotFoundError, match=r"1\.jpg"):
        ijb.decode_range(1, 2)


def test_every_probe_has_one_mate() -> None:
    assert mates(np.array([5, 3]), np.array([3, 9, 5])).tolist() == [2, 0]
    with pytest.raises(ValueError, match="subject 4 of a probe is 0 times"):
        mates(np.array([5, 4]), np.array([3, 5]))
    with pytest.raises(ValueError, match="subject 5 of a probe is 2 times"):
        mates(np.array([5]), np.array([5, 5]))
