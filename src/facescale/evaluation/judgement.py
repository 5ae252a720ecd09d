"""All figures of a set of pairs: accuracy, TAR at every FAR, thresholds and their intervals."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from facescale.data.pairs import PairSet
from facescale.distributed import Group
from facescale.evaluation.embedding import embed_pairs
from facescale.evaluation.intervals import REPLICATES, Intervals, TooFewPeople, bootstrap
from facescale.evaluation.thresholds import FARS, TarAtFar, for_json, tar_table
from facescale.evaluation.verification import (
    Bools,
    Floats,
    Ints,
    Verification,
    check_pairs,
    choose_folds,
    decisions,
    verify,
)

ONE_RANK = Group()


@dataclass(frozen=True, eq=False)
class Judgement:
    """All figures of a model on one set of pairs.

    Attributes:
        name: Of the set.
        verification: Accuracy and the curve, as InsightFace computes them.
        tars: TAR and cosine threshold at each FAR.
        intervals: 95 % intervals; None if they were not asked for.
        scores: (n,) cosine of each pair.
        same: (n,) True where a pair shows one person.
        folds: Folds of the accuracy.
        flip: Whether the mirrored image was added.
    """

    name: str
    verification: Verification
    tars: list[TarAtFar]
    intervals: Intervals | None
    scores: Floats
    same: Bools
    folds: int
    flip: bool

    def figures(self) -> dict[str, Any]:
        """All but the curve and the scores as plain values, fit for JSON; rates as fractions."""
        metrics = self.verification.metrics(self.name)
        return {
            "name": self.name,
            "pairs": len(self.same),
            "folds": self.folds,
            "flip": self.flip,
            **{key.removeprefix(f"{self.name}/"): value for key, value in metrics.items()},
            "tar_at_far": for_json([asdict(row) for row in self.tars]),
            "intervals": None if self.intervals is None else self.intervals.figures(),
        }


def judge_pairs(
    network: nn.Module,
    pairs: PairSet,
    *,
    folds: int | None = None,
    flip: bool = True,
    people: Ints | None = None,
    replicates: int = REPLICATES,
    fars: Sequence[float] = FARS,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
    world: Group = ONE_RANK,
) -> Judgement:
    """Embed the images of `pairs`, each once, and judge them; every rank gets the same answer.

    Args:
        network: From pixels (b, 3, 112, 112), uint8 RGB, to embeddings (b, dim).
        pairs: The set.
        folds: Folds of the accuracy, cut in the order of the pairs; None takes 10, or as many as a
            small set can fill.
        flip: Add the embedding of the mirrored image.
        people: (n, 2) numbers of the two people of each pair; `pairs.people` when not given.
        replicates: Of the bootstrap; 0 leaves the intervals out.
        fars: Where TAR and threshold are wanted.
        batch_size: Images per forward pass.
        device: Where the network lies.
        world: The ranks that take part.

    Raises:
        ValueError: As in `verify` and `bootstrap`.
    """
    folds = choose_folds(pairs.same) if folds is None else folds
    check_pairs(pairs.same, folds)  # before minutes of embedding
    sharing = world.rank, world.size, world.gather_rows
    unit, xnorm = embed_pairs(network, pairs, flip, batch_size, device, *sharing)
    judged = judge_rows(
        pairs.name,
        unit[0::2],
        unit[1::2],
        pairs.same,
        folds,
        people=pairs.people if people is None else people,
        replicates=replicates,
        fars=fars,
    )
    return replace(judged, flip=flip, verification=replace(judged.verification, xnorm=xnorm))


def judge_rows(
    name: str,
    first: Floats,
    second: Floats,
    same: Bools,
    folds: int = 10,
    *,
    people: Ints | None = None,
    replicates: int = REPLICATES,
    fars: Sequence[float] = FARS,
) -> Judgement:
    """Judge unit embeddings (n, dim) and the partner of each, (n, dim); see `judge_pairs`.

    The intervals are over pairs where there are too few people to draw from.
    """
    answer = verify(first, second, same, folds)
    scores = 1.0 - np.square(first - second).sum(axis=1) / 2.0
    intervals = None
    if replicates:
        right = decisions(first, second, same, folds)
        try:
            intervals = bootstrap(scores, same, right, people, fars, replicates)
        except TooFewPeople:  # the figures need no intervals, and should not be lost for them
            intervals = bootstrap(scores, same, right, None, fars, replicates)
    tars = tar_table(answer.roc, int(same.sum()), fars)
    return Judgement(name, answer, tars, intervals, scores, same, folds, flip=True)
