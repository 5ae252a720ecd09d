"""All figures of a set of pairs, and the picture of its scores."""

import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from facescale.backbones import build
from facescale.cli import main
from facescale.data.pairs import PairSet, load_pairs
from facescale.evaluation.histograms import plot_scores
from facescale.evaluation.judgement import judge_pairs, judge_rows
from facescale.evaluation.verification import Bools, Floats, decisions, normalise, verify
from facescale.models.onnx_network import OnnxNetwork
from facescale.models.weights import save_backbone
from records import jpeg
from shared_data import shared_data


class Thumbnail(nn.Module):
    """The image itself, small and without its mean."""

    def forward(self, images: Tensor) -> Tensor:
        small = nn.functional.avg_pool2d(images.float(), 8).flatten(1)
        return small - small.mean(dim=1, keepdim=True)


def rows(count: int, noise: float, seed: int = 0) -> tuple[Floats, Floats, Bools]:
    random = np.random.default_rng(seed)
    same = np.arange(count) % 2 == 0
    first = random.normal(size=(count, 8))
    other = np.where(same[:, None], first, random.normal(size=(count, 8)))
    return normalise(first), normalise(other + noise * random.normal(size=(count, 8))), same


def test_decisions_are_what_the_accuracy_is_made_of() -> None:
    first, second, same = rows(203, 1.0)
    right = decisions(first, second, same, folds=7)
    folds = np.array_split(right, 7)
    answer = verify(first, second, same, folds=7)
    assert np.mean([fold.mean() for fold in folds]) == pytest.approx(answer.accuracy)
    assert 0.6 < answer.accuracy < 1
    with pytest.raises(ValueError, match="202 pairs of embeddings, but 203 entries"):
        decisions(first[1:], second[1:], same, folds=7)


def test_all_figures_are_plain_values_and_agree() -> None:
    judged = judge_rows("mine", *rows(400, 1.0), replicates=50)
    figures = json.loads(json.dumps(judged.figures(), allow_nan=False))
    assert figures["auc"] == pytest.approx(roc_auc_score(judged.same, judged.scores))
    assert figures["accuracy"] == judged.verification.accuracy
    assert figures["tar_std"] == judged.verification.tar_std
    intervals = figures["intervals"]
    assert intervals["over"] == "pairs"
    assert intervals["accuracy"]["low"] < figures["accuracy"] < intervals["accuracy"]["high"]
    assert [row["far"] for row in figures["tar_at_far"]] == [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1]
    assert judge_rows("mine", *rows(400, 1.0), replicates=0).figures()["intervals"] is None


def test_intervals_are_over_pairs_where_people_are_too_few() -> None:
    first, second, same = rows(40, 1.0)
    people = np.where(same[:, None], [2, 2], [0, 1])  # all different pairs are of two people
    judged = judge_rows("twins", first, second, same, people=people, replicates=50)
    assert judged.intervals is not None
    assert judged.intervals.over == "pairs"


def test_the_mirror_image_is_added_by_choice() -> None:
    random = np.random.default_rng(0)
    images = [random.integers(0, 256, (112, 112, 3), dtype=np.uint8) for _ in range(80)]
    pairs = PairSet("noise", images, np.arange(40) % 2 == 0)
    both, one = (judge_pairs(Thumbnail(), pairs, flip=flip, replicates=0) for flip in (True, False))
    pixels = pairs.decode(range(80)).reshape(80, 14, 8, 14, 8, 3).mean(axis=(2, 4))
    small = pixels.transpose(0, 3, 1, 2)
    for judged, faces in ((one, small), (both, small + small[..., ::-1])):
        flat = faces.reshape(80, -1)
        unit = normalise(flat - flat.mean(axis=1, keepdims=True))
        np.testing.assert_allclose(judged.scores, (unit[0::2] * unit[1::2]).sum(axis=1), atol=1e-5)
    assert (both.flip, one.flip) == (True, False)
    centred = (small - small.mean(axis=(1, 2, 3), keepdims=True)).reshape(80, -1)
    length = np.linalg.norm(centred, axis=1).mean()
    assert one.verification.xnorm == pytest.approx(length, rel=1e-4)


def test_a_small_set_gets_as_many_folds_as_it_can_fill() -> None:
    random = np.random.default_rng(0)
    images = [random.integers(0, 256, (112, 112, 3), dtype=np.uint8) for _ in range(12)]
    pairs = PairSet("few", images, np.arange(6) % 2 == 0)
    judged = judge_pairs(Thumbnail(), pairs, replicates=10)
    assert judged.figures()["folds"] == judged.folds == 3
    with pytest.raises(ValueError, match="cannot be cut into 7 folds"):
        judge_pairs(Thumbnail(), pairs, folds=7)


def test_scores_are_drawn_a_panel_a_set(tmp_path: Path) -> None:
    judged = {name: judge_rows(name, *rows(200, 0.8), replicates=0) for name in ("a", "b_c")}
    plot_scores(tmp_path / "scores.png", judged)
    assert (tmp_path / "scores.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="no scores to draw"):
        plot_scores(tmp_path / "none.png", {})


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_reference_model_on_lfw_is_judged_as_by_arcface_torch() -> None:
    pytest.importorskip("onnxruntime", reason="ONNX files need the extra 'export'")
    network = OnnxNetwork(shared_data("models/mobilefacenet_reference.onnx"), 127, 128)
    judged = judge_pairs(network, load_pairs(shared_data("lfw.bin")), batch_size=128)
    answer = judged.verification
    assert round(100 * answer.accuracy, 4) == 99.0167
    assert round(100 * answer.accuracy_std, 4) == 0.4799
    assert round(100 * answer.tar, 4) == 97.1667
    assert judged.intervals is not None
    assert judged.intervals.accuracy.low < answer.accuracy < judged.intervals.accuracy.high


def test_verify_takes_sets_as_words_a_list_of_pairs_and_any_far(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    random = np.random.default_rng(0)
    lines = []
    for name in "ABCDEF":
        (tmp_path / name).mkdir()
        for number in (1, 2):
            (tmp_path / name / f"{name}_{number:04d}.jpg").write_bytes(jpeg(random))
        lines += [f"{name} 1 2", f"{name} 1 {'ABCDEF'['BCDEFA'.index(name)]} 2"]
    (tmp_path / "pairs.txt").write_text("\n".join(lines))
    save_backbone(tmp_path / "model.safetensors", build("r18_half", image_size=28))
    words = ["verify", str(tmp_path), str(tmp_path / "pairs.txt"), "--far", "0.25"]
    main([*words, "--json", "--folds", "2", "--no-flip"])
    (figures,) = json.loads(capsys.readouterr().out).values()
    assert (figures["pairs"], figures["folds"], figures["flip"]) == (12, 2, False)
    assert figures["intervals"]["over"] == "people"
    assert 0.25 in [row["far"] for row in figures["tar_at_far"]]
    main([*words, "--folds", "2"])
    said = capsys.readouterr().out
    assert "\n  0.25" in said or "\npairs  FAR" in said
    assert "FAR 1e-06 needs more than 6 pairs" in said
    for wrong, message in (([], "no verification set"), (["lfw.bin", "--far", "2"], "--far must")):
        with pytest.raises(SystemExit):
            main(["verify", str(tmp_path), *wrong])
        assert message in capsys.readouterr().err
