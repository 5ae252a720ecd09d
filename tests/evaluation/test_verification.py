"""Accuracy, TAR and ROC against scikit-learn, SciPy and InsightFace's procedure written out."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.interpolate import BSpline, interp1d  # type: ignore[import-untyped]
from scipy.optimize import brentq  # type: ignore[import-untyped]
from sklearn.metrics import roc_auc_score, roc_curve
from sklearn.model_selection import KFold

from facescale.evaluation.verification import (
    Roc,
    check_pairs,
    choose_folds,
    normalise,
    roc,
    verify,
)

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


def some_pairs(n: int, noise: float, seed: int, dim: int = 16) -> tuple[Floats, Floats, Bools]:
    """Unit embeddings of `n` pairs; the more noise, the less alike are two of one person."""
    rng = np.random.default_rng(seed)
    same = rng.random(n) < 0.5
    first = normalise(rng.standard_normal((n, dim)))
    other = np.where(same[:, None], first, normalise(rng.standard_normal((n, dim))))
    return first, normalise(other + noise * rng.standard_normal((n, dim))), same


def slinear(x: Floats, y: Floats, at: float) -> float:
    """The spline that interp1d(x, y, kind="slinear") evaluates; levels in `x` allowed, as once."""
    return float(BSpline(np.r_[x[0], x, x[-1]], y, 1)(at))


def as_insightface(first: Floats, second: Floats, same: Bools, folds: int) -> tuple[float, ...]:
    """The procedure as it stands in arcface_torch, threshold by threshold."""
    distance = np.sum(np.square(first - second), axis=1)
    accuracies, tars, best = [], [], []
    for train, test in KFold(n_splits=folds, shuffle=False).split(distance):
        coarse = np.arange(0, 4, 0.01)
        right = [np.mean((distance[train] < t) == same[train]) for t in coarse]
        best.append(coarse[np.argmax(right)])
        accuracies.append(np.mean((distance[test] < best[-1]) == same[test]))
        fine = np.arange(0, 4, 0.001)
        different = distance[train][~same[train]]
        far = np.array([np.mean(different < t) for t in fine])
        threshold = slinear(far, fine, 1e-3) if far.max() >= 1e-3 else 0.0
        tars.append(np.mean(distance[test][same[test]] < threshold))
    return (
        float(np.mean(accuracies)),
        float(np.std(accuracies)),
        float(np.mean(tars)),
        float(np.std(tars)),
        float(np.mean(best)),
    )


def brute_tar(scores: Floats, same: Bools, target: float) -> float:
    candidates = [np.inf, *scores]
    return max(
        float(np.mean(scores[same] >= t))
        for t in candidates
        if np.mean(scores[~same] >= t) <= target
    )


def test_the_spline_is_what_interp1d_evaluates() -> None:
    x, y = np.array([0.0, 0.1, 0.5, 1.0]), np.array([0.0, 3.0, 1.0, 2.0])
    for at in [0.0, 0.05, 0.1, 0.7]:
        assert slinear(x, y, at) == pytest.approx(float(interp1d(x, y, kind="slinear")(at)))


@pytest.mark.parametrize("noise", [0.02, 0.15, 0.4, 3.0])
@pytest.mark.parametrize(("n", "folds"), [(613, 10), (200, 7), (40, 2)])
def test_counts_as_insightface_does(noise: float, n: int, folds: int) -> None:
    first, second, same = some_pairs(n, noise, seed=n)
    found = verify(first, second, same, folds)
    figures = (found.accuracy, found.accuracy_std, found.tar, found.tar_std, found.threshold)
    assert figures == pytest.approx(as_insightface(first, second, same, folds), abs=1e-12)


def test_far_that_meets_its_target_exactly_is_read_as_insightface_reads_it() -> None:
    # 1,000 different pairs among the training folds: FAR 1e-3 is a level of the curve.
    rng = np.random.default_rng(0)
    first, second, _ = some_pairs(4000, 0.5, seed=1)
    same = np.tile([True, False], 2000)
    second[~same] = normalise(rng.standard_normal((2000, 16)))
    found = verify(first, second, same, folds=2)
    expected = as_insightface(first, second, same, 2)
    assert (found.tar, found.tar_std) == pytest.approx(expected[2:4], abs=1e-12)


def test_target_far_out_of_reach_accepts_nobody() -> None:
    # Distance 4 lies above every threshold, so FAR stays 0; and distance 0 is not below 0.
    first = np.tile([[1.0, 0.0]], (40, 1))
    same = np.tile([True, False], 20)
    found = verify(first, np.where(same[:, None], first, -first), same)
    assert (found.accuracy, found.tar, found.roc.tar_at(1e-3)) == (1.0, 0.0, 1.0)
    assert found.threshold == pytest.approx(0.01)  # the first of those that are equally good
    assert found.threshold_cosine == pytest.approx(0.995)


@pytest.mark.parametrize("within_reach", [0, 2])
def test_far_is_compared_with_its_target_at_the_end_of_the_thresholds(within_reach: int) -> None:
    # 1,000 different pairs in each fold, opposite but for a few: FAR ends at 0 or at 2e-3.
    first, second, _ = some_pairs(4000, 0.5, seed=2)
    same = np.tile([True, False], 2000)
    second[~same] = -first[~same]
    for fold in range(2):
        few = 2000 * fold + 1 + 2 * np.arange(within_reach)
        second[few] = np.roll(first[few], 1, axis=1)
    found = verify(first, second, same, folds=2)
    assert found.tar == pytest.approx(as_insightface(first, second, same, 2)[2], abs=1e-12)
    assert (found.tar > 0) == (within_reach > 0)


def test_neither_order_inside_a_pair_nor_length_before_normalising_matters() -> None:
    rng = np.random.default_rng(5)
    first, second, same = some_pairs(300, 0.3, seed=5)
    swap = (rng.random(300) < 0.5)[:, None]
    left, right = np.where(swap, second, first), np.where(swap, first, second)
    lengths = rng.uniform(0.1, 50.0, (300, 1))
    found, plain = verify(normalise(left * lengths), right, same), verify(first, second, same)
    assert found.metrics("x") == pytest.approx(plain.metrics("x"), abs=1e-12)


def test_order_of_pairs_matters_only_between_folds() -> None:
    first, second, same = some_pairs(100, 0.4, seed=6)
    order = np.concatenate([k * 10 + np.random.default_rng(k).permutation(10) for k in range(10)])
    shuffled = verify(first[order], second[order], same[order])
    assert shuffled.metrics("x") == pytest.approx(verify(first, second, same).metrics("x"))


@pytest.mark.parametrize("steps", [None, 7])  # 7: many ties
def test_roc_is_that_of_scikit_learn(steps: int | None) -> None:
    rng = np.random.default_rng(2)
    same = rng.random(500) < 0.3
    scores = rng.standard_normal(500) + same
    scores = scores if steps is None else np.round(scores * steps / 6)
    found = roc(scores, same)
    far, tar, thresholds = roc_curve(same, scores, drop_intermediate=False)
    np.testing.assert_allclose(found.far, far, atol=1e-15)
    np.testing.assert_allclose(found.tar, tar, atol=1e-15)
    np.testing.assert_array_equal(found.thresholds, thresholds)
    assert found.auc == pytest.approx(roc_auc_score(same, scores), abs=1e-12)
    crossing = brentq(lambda x: 1.0 - x - interp1d(far, tar)(x), 0.0, 1.0, xtol=1e-13)
    assert found.eer == pytest.approx(crossing, abs=1e-9)
    assert found.resolution == 1 / np.sum(~same)


@pytest.mark.parametrize("target", [0.0, 1e-3, 0.01, 0.1, 0.5, 1.0])
def test_tar_at_is_the_best_that_does_not_exceed_far(target: float) -> None:
    rng = np.random.default_rng(3)
    same = np.arange(200) % 2 == 0
    scores = np.round(rng.standard_normal(200) + same, 1)
    assert roc(scores, same).tar_at(target) == pytest.approx(brute_tar(scores, same, target))


@pytest.mark.parametrize(
    ("scores", "auc", "eer"), [([3.0, 2.0, 1.0, 0.0], 1.0, 0.0), ([1.0] * 4, 0.5, 0.5)]
)
def test_perfect_and_blind_scores(scores: list[float], auc: float, eer: float) -> None:
    found: Roc = roc(scores, [True, True, False, False])
    assert (found.auc, found.eer) == pytest.approx((auc, eer))


def test_metrics_carry_the_name_and_leave_out_what_is_unknown() -> None:
    first, second, same = some_pairs(60, 0.2, seed=8)
    metrics = verify(first, second, same, folds=3).metrics("lfw")
    assert {"lfw/accuracy", "lfw/tar", "lfw/auc", "lfw/eer"} <= metrics.keys()
    assert "lfw/xnorm" not in metrics
    assert all(isinstance(value, float) for value in metrics.values())


@pytest.mark.parametrize(
    ("same", "folds", "message"),
    [
        ([True, False] * 4, 10, "8 pairs cannot be cut into 10 folds"),
        ([True, False] * 4, 1, "number of folds must be at least 2"),
        ([True] * 20, 10, "fold 1 of 10 has no pair of different people"),
        ([False] * 20, 10, "fold 1 of 10 has no pair of the same person.*use fewer --folds"),
        ([True, False, True, False, True, True], 3, "fold 3 of 3"),
    ],
)
def test_pairs_that_cannot_be_judged_are_refused(
    same: list[bool], folds: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        check_pairs(np.array(same), folds)


@pytest.mark.parametrize(
    ("same", "folds"),
    [
        ([True, False] * 300, 10),
        ([True, False] * 4, 4),
        ([True, False, False, True], 2),
        ([True] * 3 + [False, True] * 2 + [False], 2),
    ],
)
def test_folds_are_as_many_as_the_pairs_can_fill(same: list[bool], folds: int) -> None:
    pairs = np.array(same)
    assert choose_folds(pairs) == folds
    check_pairs(pairs, folds)
    if folds < 10:
        with pytest.raises(ValueError, match="fold"):
            check_pairs(pairs, folds + 1)


@pytest.mark.parametrize("same", [[True] * 9 + [False] * 9, [True, False], [True], []])
def test_pairs_for_less_than_two_folds_are_refused(same: list[bool]) -> None:
    with pytest.raises(ValueError, match=r"of 2 has no pair|cannot be cut into 2 folds"):
        choose_folds(np.array(same, dtype=bool))


def test_embeddings_that_cannot_be_judged_are_refused() -> None:
    first, second, _ = some_pairs(40, 0.2, seed=9)
    same = np.tile([True, False], 20)
    with pytest.raises(ValueError, match=r"length 2, not 1: .* normalise"):
        verify(2 * first, second, same)
    with pytest.raises(ValueError, match="39 pairs of embeddings, but 40"):
        verify(first[:-1], second[:-1], same)
    with pytest.raises(ValueError, match=r"must both be \(n, dim\)"):
        verify(first, second[:, :-1], same)
    for broken in [np.nan, np.inf, 0.0]:
        first[3] = broken
        with pytest.raises(ValueError, match=r"number 3 has length .*diverged"):
            normalise(first)
        with pytest.raises(ValueError, match="not 1"):
            verify(first, second, same)


def test_scores_that_cannot_be_ranked_are_refused() -> None:
    with pytest.raises(ValueError, match="2 same and 0 different"):
        roc([0.1, 0.2], [True, True])
    with pytest.raises(ValueError, match="NaN"):
        roc([0.1, np.nan], [True, False])
    with pytest.raises(ValueError, match=r"scores \(2,\) and same \(1,\)"):
        roc([0.1, 0.2], [True])
    with pytest.raises(ValueError, match=r"fraction in \[0, 1\]"):
        roc([0.1, 0.2], [True, False]).tar_at(-0.1)
