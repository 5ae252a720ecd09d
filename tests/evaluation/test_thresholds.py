"""Operating points against scikit-learn's curve and against counting."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_curve

from facescale.evaluation.thresholds import (
    FARS,
    interpolated_tar,
    nearest_tar,
    tar_table,
    threshold_at,
)
from facescale.evaluation.verification import roc


@given(st.integers(0, 10_000), st.integers(2, 300), st.integers(2, 40), st.floats(0, 1))
def test_the_nearest_point_is_that_of_insightface(
    seed: int, count: int, levels: int, far: float
) -> None:
    random = np.random.default_rng(seed)
    same = np.append(random.random(count) < 0.5, [True, False])
    scores = np.round(random.random(count + 2) * levels) / levels + 0.3 * same  # with ties
    fars, tars, _ = roc_curve(same, scores)
    fars, tars = np.flipud(fars), np.flipud(tars)
    _, nearest = min(zip(abs(fars - far), range(len(fars)), strict=True))
    assert nearest_tar(roc(scores, same), int(same.sum()), far) == tars[nearest]


def test_between_two_points_tar_lies_on_the_line() -> None:
    curve = roc([5, 4, 3, 2, 1, 0], [True, False, True, True, False, True])
    # (far, tar): (0, 0), (0, 1/4), (1/2, 1/4), (1/2, 3/4), (1, 3/4), (1, 1)
    for far, tar in ((0, 0.25), (0.25, 0.25), (0.5, 0.75), (0.75, 0.75), (1, 1)):
        assert interpolated_tar(curve, far) == pytest.approx(tar)
    tied = roc([1, 1, 0, 0], [True, False, True, False])
    assert interpolated_tar(tied, 0.25) == pytest.approx(0.25)


@given(st.integers(0, 10_000), st.floats(0, 1))
def test_the_threshold_is_the_lowest_that_keeps_the_far(seed: int, far: float) -> None:
    random = np.random.default_rng(seed)
    same = np.arange(60) % 3 == 0
    scores = np.round(random.normal(size=60) + same, 1)
    threshold = threshold_at(roc(scores, same), far)
    assert np.mean(scores[~same] >= threshold) <= far
    lower = scores[scores < threshold]
    if len(lower):
        assert np.mean(scores[~same] >= lower.max()) > far


def test_the_table_says_what_the_set_can_show() -> None:
    random = np.random.default_rng(0)
    same = np.arange(4000) % 2 == 0
    table = tar_table(roc(random.normal(size=4000) + 3 * same, same), 2000)
    assert tuple(row.far for row in table) == FARS
    assert [row.resolved for row in table] == [False, False, False, True, True, True]
    assert [row.tar for row in table] == sorted(row.tar for row in table)
    assert math.isinf(threshold_at(roc([1, 2], [True, False]), 0.5))
