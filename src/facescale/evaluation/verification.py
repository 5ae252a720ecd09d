"""Verification of pairs: K-fold accuracy, TAR at a FAR, and the ROC curve.

Accuracy and TAR are computed as in `eval/verification.py` of InsightFace's arcface_torch, so that
they can be compared with published figures.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

FAR_TARGET = 1e-3
FOLDS = 10
"""Of every set that is large enough, as published figures have it."""


@dataclass(frozen=True, eq=False)
class Roc:
    """Receiver operating characteristic: true against false accept rate over all thresholds.

    Attributes:
        far: (points,) false accept rate, rising from 0 to 1.
        tar: (points,) true accept rate, rising from 0 to 1.
        thresholds: (points,) falling from infinity; a pair is accepted where score >= threshold.
        num_different: Number of pairs of different people, the denominator of `far`.
    """

    far: Floats
    tar: Floats
    thresholds: Floats
    num_different: int

    @property
    def resolution(self) -> float:
        """The smallest FAR above 0 that this number of pairs can show."""
        return 1.0 / self.num_different

    @property
    def auc(self) -> float:
        """Area under the curve: how likely a same pair outscores a different one, ties half."""
        return float(np.trapezoid(self.tar, self.far))

    @property
    def eer(self) -> float:
        """Equal error rate: where FAR = 1 - TAR, by linear interpolation."""
        return float(np.interp(0.0, self.far + self.tar - 1.0, self.far))

    def tar_at(self, far: float) -> float:
        """Largest TAR whose FAR does not exceed `far`; no interpolation."""
        if not 0.0 <= far <= 1.0:
            raise ValueError(f"far is a fraction in [0, 1], got {far}")
        return float(self.tar[np.searchsorted(self.far, far, side="right") - 1])


@dataclass(frozen=True, eq=False)
class Verification:
    """Result of a verification. Rates are fractions, not percent.

    Attributes:
        accuracy: Mean over the folds, each at the threshold that is best on the other folds.
        accuracy_std: Population standard deviation over the folds.
        threshold: Mean of these thresholds, as squared distance of unit embeddings, in [0, 4).
        tar: Mean over the folds of the TAR at FAR 1e-3, with the threshold of the other folds.
        tar_std: Population standard deviation over the folds.
        roc: The curve of all pairs together, scored by cosine.
        xnorm: Mean length of the embeddings before flip and normalisation, if it is known.
    """

    accuracy: float
    accuracy_std: float
    threshold: float
    tar: float
    tar_std: float
    roc: Roc
    xnorm: float | None = None

    @property
    def threshold_cosine(self) -> float:
        """`threshold` as a cosine; pairs above it are accepted."""
        return 1.0 - self.threshold / 2.0

    def metrics(self, name: str) -> dict[str, float]:
        """Plain numbers for a log, with keys such as "lfw/accuracy" for `name` = "lfw"."""
        values = {
            "accuracy": self.accuracy,
            "accuracy_std": self.accuracy_std,
            "threshold_cosine": self.threshold_cosine,
            "tar": self.tar,
            "tar_std": self.tar_std,
            "auc": self.roc.auc,
            "eer": self.roc.eer,
            "xnorm": self.xnorm,
        }
        return {f"{name}/{key}": value for key, value in values.items() if value is not None}


def verify(
    first: ArrayLike, second: ArrayLike, same: ArrayLike, folds: int = FOLDS
) -> Verification:
    """Verify pairs by the squared distance of their embeddings.

    The folds are cut in the order of the pairs, without shuffling, as sets such as LFW require.

    Args:
        first: (n, dim) unit rows (see `normalise`), usually the sum over an image and its mirror.
        second: (n, dim) the other embedding of each pair.
        same: (n,) True if both are of the same person.
        folds: Number of folds, at least 2.

    Raises:
        ValueError: A row is not of length 1 (NaN included), or the pairs cannot fill the folds
            (see `check_pairs`).
    """
    distances, same, fold = _measured(first, second, same, folds)
    accuracies, thresholds = _accuracies(distances, same, fold)
    tars = _tars(distances, same, fold)
    return Verification(
        accuracy=float(accuracies.mean()),
        accuracy_std=float(accuracies.std()),
        threshold=float(thresholds.mean()),
        tar=float(tars.mean()),
        tar_std=float(tars.std()),
        roc=roc(1.0 - distances / 2.0, same),
    )


def decisions(first: ArrayLike, second: ArrayLike, same: ArrayLike, folds: int = FOLDS) -> Bools:
    """(n,) whether each pair is judged right, at the threshold that is best on the other folds.

    Arguments and errors as in `verify`; the mean over each fold is that fold's accuracy.
    """
    distances, same, fold = _measured(first, second, same, folds)
    _, thresholds = _accuracies(distances, same, fold)
    right: Bools = (distances < thresholds[fold]) == same
    return right


def _measured(
    first: ArrayLike, second: ArrayLike, same: ArrayLike, folds: int
) -> tuple[Floats, Bools, Ints]:
    """Squared distance, kind and fold of each pair, (n,); arguments and errors as in `verify`."""
    same = np.asarray(same, dtype=bool)
    check_pairs(same, folds)
    distances = _squared_distances(first, second)
    if distances.shape != same.shape:
        raise ValueError(f"{len(distances)} pairs of embeddings, but {len(same)} entries in same")
    return distances, same, np.repeat(np.arange(folds), _fold_sizes(len(same), folds))


def roc(scores: ArrayLike, same: ArrayLike) -> Roc:
    """The exact curve of `scores` (n,), high for the same person; equal scores are one point.

    Raises:
        ValueError: Shapes differ, a score is not finite, or all pairs are of one kind.
    """
    scores, same = np.asarray(scores, dtype=np.float64), np.asarray(same, dtype=bool)
    if scores.ndim != 1 or scores.shape != same.shape:
        raise ValueError(f"scores {scores.shape} and same {same.shape} must both be (n,)")
    if not np.isfinite(scores).all():
        raise ValueError("a score is NaN or infinite: has the network diverged?")
    num_same = int(same.sum())
    num_different = len(same) - num_same
    if not (num_same and num_different):
        raise ValueError(
            f"{num_same} same and {num_different} different pairs: a ROC curve needs both kinds"
        )
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    ends = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)  # last of each run of ties
    true_accepts = np.cumsum(same[order])[ends]
    return Roc(
        far=np.append(0.0, (ends + 1 - true_accepts) / num_different),
        tar=np.append(0.0, true_accepts / num_same),
        thresholds=np.append(np.inf, ranked[ends]),
        num_different=num_different,
    )


def normalise(embeddings: ArrayLike) -> Floats:
    """Scale each row of (n, dim) to length 1, in float64.

    Raises:
        ValueError: A row has no direction: zero, NaN or infinite.
    """
    rows: Floats = np.asarray(embeddings, dtype=np.float64)
    lengths: Floats = np.linalg.norm(rows, axis=1, keepdims=True)
    bad = np.flatnonzero(~((lengths > 0.0) & np.isfinite(lengths)))
    if len(bad):
        raise ValueError(
            f"{len(bad)} of {len(rows)} embeddings have no direction (number {bad[0]} has "
            f"length {lengths[bad[0], 0]}): the network has diverged; go back to an earlier "
            "checkpoint or lower the learning rate"
        )
    return rows / lengths


def choose_folds(same: Bools) -> int:
    """The largest number of folds up to `FOLDS` that the pairs (n,) can be cut into.

    Raises:
        ValueError: Not even 2 folds have both kinds of pairs each.
    """
    fitting = (folds for folds in range(FOLDS, 1, -1) if not _fault(same, folds))
    chosen = next(fitting, 2)
    check_pairs(same, chosen)
    return chosen


def check_pairs(same: Bools, folds: int) -> None:
    """Check early that pairs (n,) can be judged in `folds` folds.

    Raises:
        ValueError: Fewer than 2 folds, fewer pairs than folds, or a fold without one of the kinds
            (its TAR or its neighbours' FAR would be 0 / 0).
    """
    if fault := _fault(same, folds):
        raise ValueError(fault)


def _fault(same: Bools, folds: int) -> str:
    """Why the pairs cannot be judged in so many folds; empty if they can."""
    if not 2 <= folds <= len(same):
        return (
            f"{len(same)} pairs cannot be cut into {folds} folds: "
            "the number of folds must be at least 2 and at most the number of pairs"
        )
    for number, part in enumerate(np.split(same, np.cumsum(_fold_sizes(len(same), folds))[:-1])):
        if part.all() or not part.any():
            missing = "different people" if part.all() else "the same person"
            remedy = "use fewer --folds" if folds > 2 else "each half of the set needs both kinds"
            return (
                f"fold {number + 1} of {folds} has no pair of {missing}: the {len(same)} pairs are "
                f"cut in their order, so mix the two kinds; {remedy}"
            )
    return ""


def _fold_sizes(num_pairs: int, folds: int) -> Ints:
    """(folds,) sizes as even as possible, larger ones first, as scikit-learn's KFold."""
    return num_pairs // folds + (np.arange(folds) < num_pairs % folds)


def _squared_distances(first: ArrayLike, second: ArrayLike) -> Floats:
    """(n,) squared distances of unit rows (n, dim)."""
    left: Floats = np.asarray(first, dtype=np.float64)
    right: Floats = np.asarray(second, dtype=np.float64)
    if left.ndim != 2 or left.shape != right.shape:
        raise ValueError(f"embeddings {left.shape} and {right.shape} must both be (n, dim)")
    lengths = np.concatenate([np.linalg.norm(rows, axis=1) for rows in (left, right)])
    bad = np.flatnonzero(~(np.abs(lengths - 1.0) < 0.01))  # wide enough for half precision
    if len(bad):
        raise ValueError(
            f"an embedding has length {lengths[bad[0]]:.4g}, not 1: pass them through normalise()"
        )
    squared: Floats = np.square(left - right).sum(axis=1)
    return squared


def _accepts(distances: Floats, fold: Ints, folds: int, thresholds: Floats) -> Ints:
    """(folds, thresholds) number of `distances` of a fold below each threshold."""
    first_above = np.searchsorted(thresholds, distances, side="right")
    counts = np.zeros((folds, len(thresholds) + 1), dtype=np.int64)
    np.add.at(counts, (fold, first_above), 1)
    return counts.cumsum(axis=1)[:, :-1]


def _accuracies(distances: Floats, same: Bools, fold: Ints) -> tuple[Floats, Floats]:
    """(folds,) accuracy of each fold, and its threshold: the best one on the other folds."""
    folds, thresholds = int(fold[-1]) + 1, np.arange(0, 4, 0.01)
    true_accepts = _accepts(distances[same], fold[same], folds, thresholds)
    false_accepts = _accepts(distances[~same], fold[~same], folds, thresholds)
    different = np.bincount(fold[~same], minlength=folds)[:, None]
    right = true_accepts + different - false_accepts
    best = (right.sum(axis=0) - right).argmax(axis=1)
    return right[np.arange(folds), best] / np.bincount(fold), thresholds[best]


def _tars(distances: Floats, same: Bools, fold: Ints) -> Floats:
    """(folds,) TAR of each fold, at the threshold with the target FAR on the other folds.

    InsightFace reads the threshold off with `interp1d(kind="slinear")`, which newer SciPy refuses
    where FAR stays level (insightface issue 2152). `np.interp` does what older SciPy did there:
    from the last threshold of one level to the first of the next.
    """
    folds, thresholds = int(fold[-1]) + 1, np.arange(0, 4, 0.001)
    false_accepts = _accepts(distances[~same], fold[~same], folds, thresholds)
    different = np.bincount(fold[~same], minlength=folds)[:, None]
    far = (false_accepts.sum(axis=0) - false_accepts) / (different.sum() - different)
    tars = np.empty(folds)
    for k in range(folds):
        reachable = far[k, -1] >= FAR_TARGET
        threshold = np.interp(FAR_TARGET, far[k], thresholds) if reachable else 0.0
        tars[k] = np.mean(distances[same & (fold == k)] < threshold)
    return tars
