"""Intervals against textbook deviations, and against many sets drawn anew."""

import numpy as np
import pytest
from numpy.typing import NDArray

from facescale.evaluation.intervals import bootstrap
from facescale.evaluation.thresholds import interpolated_tar
from facescale.evaluation.verification import roc


def scored(
    num_people: int, per_person: int, seed: int, trait: float = 0.0
) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.int64]]:
    """Pairs of both kinds; with `trait`, all pairs of a person score higher or lower together."""
    random = np.random.default_rng(seed)
    level = trait * random.normal(size=num_people)
    people = np.arange(num_people).repeat(per_person)
    others = (people + 1 + random.integers(0, num_people - 1, len(people))) % num_people
    pairs = np.concatenate([np.stack([people, people], 1), np.stack([people, others], 1)])
    same = pairs[:, 0] == pairs[:, 1]
    scores = random.normal(size=len(pairs)) + 1.5 * same + level[pairs[:, 0]]
    return scores, same, pairs


def test_over_pairs_the_deviation_is_the_binomial_one() -> None:
    scores, same, _ = scored(200, 5, seed=0)
    right = (scores > 0.75) == same
    found = bootstrap(scores, same, right)
    rates = [right[kind].mean() for kind in (same, ~same)]
    expected = np.sqrt(sum(rate * (1 - rate) / 1000 for rate in rates)) / 2
    assert found.over == "pairs"
    assert found.accuracy.deviation == pytest.approx(expected, rel=0.1)
    middle = (found.accuracy.low + found.accuracy.high) / 2
    assert middle == pytest.approx(right.mean(), abs=0.3 * expected)
    width = found.accuracy.high - found.accuracy.low
    assert width == pytest.approx(2 * 1.96 * expected, rel=0.15)


def test_over_people_it_is_what_new_people_would_show() -> None:
    """Pairs that share a person err together: intervals over pairs promise too much."""
    areas = [roc(*scored(40, 30, seed, trait=1.0)[:2]).auc for seed in range(1, 200)]
    over_people, over_pairs = [], []
    for seed in range(1, 13):
        scores, same, people = scored(40, 30, seed, trait=1.0)
        right = np.ones(len(same), bool)
        over_people.append(bootstrap(scores, same, right, people, replicates=200).auc.deviation)
        over_pairs.append(bootstrap(scores, same, right, replicates=200).auc.deviation)
    assert np.mean(over_people) == pytest.approx(np.std(areas), rel=0.25)
    assert np.mean(over_pairs) < 0.75 * np.std(areas)


def test_every_figure_of_the_whole_lies_in_its_interval() -> None:
    scores, same, people = scored(60, 4, seed=3)
    found = bootstrap(scores, same, (scores > 0.75) == same, people)
    curve = roc(scores, same)
    assert found.over == "people"
    assert found.auc.low < curve.auc < found.auc.high
    assert found.eer.low < curve.eer < found.eer.high
    for far in (1e-2, 1e-1):
        assert found.tar[far].low <= interpolated_tar(curve, far) <= found.tar[far].high
    assert found.figures()["tar"]["0.01"]["low"] == found.tar[1e-2].low


def test_tied_scores_move_together() -> None:
    same = np.arange(40) % 2 == 0
    found = bootstrap(np.ones(40), same, same, replicates=20)
    assert (found.auc.low, found.auc.high) == (0.5, 0.5)


def test_what_contradicts_itself_is_refused() -> None:
    scores, same, people = scored(10, 2, seed=0)
    with pytest.raises(ValueError, match="at least 2 replicates"):
        bootstrap(scores, same, same, replicates=1)
    with pytest.raises(ValueError, match="alike in a pair exactly where"):
        bootstrap(scores, same, same, people[::-1])
    one = np.array([True, False])
    with pytest.raises(ValueError, match="too few people for a bootstrap"):
        bootstrap(np.arange(2.0), one, one, np.array([[0, 0], [1, 2]]))
