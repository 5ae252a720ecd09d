"""95 % bootstrap intervals for the figures of a verification.

People are resampled if they are known: the errors of pairs that share a person are correlated, and
an interval over pairs is then too narrow. A `.bin` set does not contain identities, so there the
pairs are resampled. `Intervals.over` says which of the two was done.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from facescale.evaluation.thresholds import FARS, interpolated_tar
from facescale.evaluation.verification import Bools, Floats, Ints, Roc

LEVEL = 0.95
REPLICATES = 1000


class TooFewPeople(ValueError):
    """There are too few people to draw from; pairs can be drawn instead."""


@dataclass(frozen=True)
class Interval:
    """The middle 95 % of a figure over all replicates.

    Attributes:
        low: Lower end.
        high: Upper end.
        deviation: Standard deviation over the replicates.
    """

    low: float
    high: float
    deviation: float


@dataclass(frozen=True)
class Intervals:
    """Intervals of a verification's figures.

    Attributes:
        over: What was resampled, "people" or "pairs".
        accuracy: Of the accuracy, at the folds' thresholds of the whole set.
        auc: Of the area under the curve.
        eer: Of the equal error rate.
        tar: Of the interpolated TAR, by FAR.
    """

    over: str
    accuracy: Interval
    auc: Interval
    eer: Interval
    tar: dict[float, Interval]

    def figures(self) -> dict[str, Any]:
        """Plain values, fit for JSON."""
        return asdict(self) | {"tar": {f"{far:g}": asdict(i) for far, i in self.tar.items()}}


def bootstrap(
    scores: Floats,
    same: Bools,
    right: Bools,
    people: Ints | None = None,
    fars: Sequence[float] = FARS,
    replicates: int = REPLICATES,
    seed: int = 0,
) -> Intervals:
    """Intervals of accuracy, AUC, EER and TAR.

    Over people, a replicate draws as many as there are with replacement. A pair then counts as
    often as its person was drawn, or as the product for two people (Owen, The pigeonhole bootstrap,
    Annals of Applied Statistics 2007). Where most people are in few pairs these intervals are too
    wide rather than too narrow. Over pairs it draws as many pairs of each kind.

    Args:
        scores: (n,) cosine of each pair.
        same: (n,) True where both are one person.
        right: (n,) whether the decision on a pair is right; see `verification.decisions`.
        people: (n, 2) numbers of the two people of each pair; None if they are not known.
        fars: Where TAR is wanted.
        replicates: Number of resamplings, at least 2.
        seed: Seed of the resampling.

    Raises:
        TooFewPeople: Most draws of people have pairs of one kind only.
        ValueError: Numbers of people contradict `same`.
    """
    if replicates < 2:
        raise ValueError(f"a bootstrap needs at least 2 replicates, got {replicates}")
    random = np.random.default_rng(seed)
    draw = _draw_pairs(same, random) if people is None else _draw_people(people, same, random)
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    ends = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)
    columns = []
    for _ in range(replicates):
        weights = draw()
        if not (weights[same].any() and weights[~same].any()):
            continue  # of few people, none may have been drawn for one kind of pair
        roc = _weighted_roc(weights[order], same[order], ends, ranked)
        rate = float(weights[right].sum() / weights.sum())
        columns.append([rate, roc.auc, roc.eer, *(interpolated_tar(roc, far) for far in fars)])
    if len(columns) < replicates / 2:
        raise TooFewPeople("too few people for a bootstrap: most draws have pairs of one kind only")
    intervals = [_interval(column) for column in np.array(columns).T]
    over = "pairs" if people is None else "people"
    accuracy, auc, eer = intervals[:3]
    return Intervals(over, accuracy, auc, eer, dict(zip(fars, intervals[3:], strict=True)))


def _draw_pairs(same: Bools, random: np.random.Generator) -> Callable[[], Floats]:
    """Draws how often each pair counts: as many of each kind as there are."""

    def draw() -> Floats:
        weights = np.zeros(len(same))
        for kind in (same, ~same):
            count = int(kind.sum())
            weights[kind] = np.bincount(random.integers(0, count, count), minlength=count)
        return weights

    return draw


def _draw_people(people: Ints, same: Bools, random: np.random.Generator) -> Callable[[], Floats]:
    """Draws how often each pair counts, by its people."""
    if people.shape != (len(same), 2) or ((people[:, 0] == people[:, 1]) != same).any():
        raise ValueError("people must be (pairs, 2), and alike in a pair exactly where `same` is")
    names, place = np.unique(people, return_inverse=True)
    left, right = place.reshape(-1, 2).T

    def draw() -> Floats:
        times = np.bincount(random.integers(0, len(names), len(names)), minlength=len(names))
        weights: Floats = np.where(same, times[left], times[left] * times[right]).astype(float)
        return weights

    return draw


def _weighted_roc(weights: Floats, same: Bools, ends: NDArray[np.intp], ranked: Floats) -> Roc:
    """The curve of pairs in falling order of their scores, each counted `weights` times."""
    true = np.cumsum(weights * same)
    false = np.cumsum(weights * ~same)
    return Roc(
        far=np.append(0.0, false[ends] / false[-1]),
        tar=np.append(0.0, true[ends] / true[-1]),
        thresholds=np.append(np.inf, ranked[ends]),
        num_different=int(false[-1]),
    )


def _interval(values: Floats) -> Interval:
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(low), float(high), float(values.std()))
