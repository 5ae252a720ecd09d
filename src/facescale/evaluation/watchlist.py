"""Open-set identification: a gallery with one template per person, and a threshold."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from facescale.evaluation.embedded import Embedded, person_templates, unit_rows
from facescale.evaluation.identification import leave_one_out, search, threshold_at_fpir
from facescale.evaluation.verification import Ints
from facescale.random import Permutation, key

PROBES_OF_THRESHOLD = 10_000
"""Images of the gallery that are compared with all other people; more would change little."""

Search = Callable[[Tensor, int], tuple[Tensor, Tensor]]
"""From unit rows (n, dim) and k to scores and rows of the gallery, both (n, k)."""


@dataclass(frozen=True)
class Candidate:
    """A person of the gallery and the score of a photograph.

    Attributes:
        person: Name in the gallery.
        score: Cosine to the person's template.
    """

    person: str
    score: float


@dataclass(frozen=True)
class Watchlist:
    """A gallery to identify people with.

    Attributes:
        people: Names, by row of `templates`.
        templates: (people, dim) unit rows.
        threshold: A person is accepted if the cosine is above it.
        index: Searches in place of `search`, such as `IvfIndex`.
    """

    people: list[str]
    templates: Tensor
    threshold: float
    index: Search | None = None

    def identify(self, embeddings: Tensor, k: int = 1) -> list[list[Candidate]]:
        """The k nearest people to each row (n, dim), the nearest first, accepted or not."""
        probes = unit_rows(embeddings.float().cpu().numpy())
        find = self.index or (lambda rows, k: search(rows, self.templates, k))
        scores, places = find(probes, k)
        return [
            [Candidate(self.people[p], s) for s, p in zip(*row, strict=True)]
            for row in zip(scores.tolist(), places.tolist(), strict=True)
        ]


def make_watchlist(
    gallery: Embedded, fpir: float = 0.01, threshold: float | None = None
) -> Watchlist:
    """A gallery with one template a person.

    Args:
        gallery: Embeddings of the people.
        fpir: The wanted fraction of unknown people who are accepted as somebody. It is estimated
            on the gallery: each image is compared with all other people.
        threshold: Used instead of the threshold for `fpir`.

    Raises:
        ValueError: Too few images of other people for such an FPIR, or embeddings without
            direction.
    """
    templates, labels = person_templates(gallery)
    if threshold is None:
        threshold = _threshold(gallery, templates, labels, fpir)
    return Watchlist([gallery.people[label] for label in labels], templates, threshold)


def _threshold(gallery: Embedded, templates: Tensor, labels: Ints, fpir: float) -> float:
    chosen = np.arange(len(gallery.labels))
    if len(chosen) > PROBES_OF_THRESHOLD:  # the same ones every time
        order = Permutation(len(chosen), key(0))
        chosen = order(torch.arange(PROBES_OF_THRESHOLD)).numpy()
    rows = unit_rows(gallery.embeddings[chosen])
    scores = leave_one_out(rows, gallery.labels[chosen], templates, labels)
    threshold = threshold_at_fpir(scores, fpir)
    if math.isnan(threshold) or fpir * len(scores) < 1:
        raise ValueError(
            f"{len(scores)} images of at least two people cannot show an FPIR of {fpir:g}, which "
            "needs 1 / FPIR of them; give a larger --fpir, or a --threshold"
        )
    return threshold
