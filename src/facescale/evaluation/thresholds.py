"""Operating points of a ROC curve: TAR at a FAR by two rules, and the threshold for a FAR."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from facescale.evaluation.verification import Roc

FARS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)


@dataclass(frozen=True)
class TarAtFar:
    """TAR at one FAR.

    Attributes:
        far: The wanted FAR.
        tar: TAR of the curve at `far`, on the straight line between two of its points. Below
            `Roc.resolution` it says nothing about `far`; see `resolved`.
        insightface: TAR of the curve's point whose FAR is nearest to `far`; that FAR may be larger.
        threshold: The lowest cosine at which FAR does not exceed `far`.
        resolved: Whether the set has enough pairs of different people for this FAR.
    """

    far: float
    tar: float
    insightface: float
    threshold: float
    resolved: bool


def tar_table(roc: Roc, num_same: int, fars: Sequence[float] = FARS) -> list[TarAtFar]:
    """TAR at each FAR; `num_same` pairs of one person are behind the curve."""
    return [
        TarAtFar(
            far=far,
            tar=interpolated_tar(roc, far),
            insightface=nearest_tar(roc, num_same, far),
            threshold=threshold_at(roc, far),
            resolved=far >= roc.resolution,
        )
        for far in fars
    ]


def interpolated_tar(roc: Roc, far: float) -> float:
    """TAR at `far` on the straight line between the curve's points around it.

    Where the curve rises at that very FAR it is the upper end.
    """
    above = int(np.searchsorted(roc.far, far, side="right"))
    if above == len(roc.far):
        return float(roc.tar[-1])
    left, right = roc.far[above - 1], roc.far[above]
    part = (far - left) / (right - left)
    return float(roc.tar[above - 1] + part * (roc.tar[above] - roc.tar[above - 1]))


def nearest_tar(roc: Roc, num_same: int, far: float) -> float:
    """TAR by the rule of InsightFace's `eval_ijbc.py`: the point whose FAR is nearest to `far`.

    Of several at one FAR the highest. Only corners are points there, because scikit-learn's
    `roc_curve` leaves out what lies on a straight line between two others.
    """
    false = np.rint(roc.far[1:] * roc.num_different).astype(np.int64)
    true = np.rint(roc.tar[1:] * num_same).astype(np.int64)
    corner = np.ones(len(false), bool)
    corner[1:-1] = (np.diff(false, 2) != 0) | (np.diff(true, 2) != 0)
    fars = np.append(0.0, roc.far[1:][corner])[::-1]
    tars = np.append(0.0, roc.tar[1:][corner])[::-1]
    return float(tars[np.argmin(np.abs(fars - far))])


def threshold_at(roc: Roc, far: float) -> float:
    """The lowest threshold whose FAR does not exceed `far`; accept where score >= threshold.

    Infinite where even the highest score is one of different people and `far` is too small.
    """
    return float(roc.thresholds[np.searchsorted(roc.far, far, side="right") - 1])


def for_json(value: Any) -> Any:
    """Plain values with None for infinity and NaN, which JSON does not have."""
    if isinstance(value, dict):
        return {key: for_json(item) for key, item in value.items()}
    if isinstance(value, list):
        return [for_json(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
