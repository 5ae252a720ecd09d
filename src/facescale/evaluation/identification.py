"""Identification: exact search of a gallery, with closed-set and open-set figures.

Probes and gallery are compared in blocks, so the matrix of all scores is never stored.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from facescale.evaluation.verification import Floats, Ints

RANKS = (1, 5, 10)
FPIRS = (0.01, 0.1)
SCORES_AT_ONCE = 1 << 24
"""Scores of one block, 64 MiB in float32."""


@dataclass(frozen=True)
class Operating:
    """One threshold of an identification.

    Attributes:
        fpir: The wanted false positive identification rate.
        tpir: True positive identification rate reached; NaN without mated and unmated probes.
        threshold: A probe is accepted where its score is higher; NaN without unmated probes.
    """

    fpir: float
    tpir: float
    threshold: float


@dataclass(frozen=True)
class ClosedSet:
    """A search where every probe has a mate in the gallery.

    Attributes:
        num_probes: Probes.
        num_gallery: Entries of the gallery.
        ranks: Fraction of the probes whose mate is among the first k, by k.
        operating: TPIR at FPIR by InsightFace's rule: the number of impostor scores that reach the
            threshold is FPIR times the number of probes, and a mate below rank 1 counts too.
    """

    num_probes: int
    num_gallery: int
    ranks: dict[int, float]
    operating: list[Operating]


@dataclass(frozen=True)
class OpenSet:
    """A search where some probes have no mate in the gallery.

    Attributes:
        num_mated: Probes with a mate.
        num_unmated: Probes without.
        operating: TPIR at FPIR as IJB and NIST's FRVT define them: FPIR is the fraction of the
            probes without a mate whose best score is above the threshold, TPIR the fraction of the
            others whose mate is first and above it.
    """

    num_mated: int
    num_unmated: int
    operating: list[Operating]


def search(
    probes: Tensor, gallery: Tensor, k: int = 1, scores_at_once: int = SCORES_AT_ONCE
) -> tuple[Tensor, Tensor]:
    """The k nearest entries of the gallery by inner product, exactly.

    Args:
        probes: (p, dim).
        gallery: (g, dim) of the same type, on the same device.
        k: How many; at most g are given.
        scores_at_once: Limits the size of a block.

    Returns:
        Scores (p, k), falling, and places in the gallery (p, k). Equal scores come in no order.
    """
    if probes.ndim != 2 or gallery.ndim != 2 or probes.shape[1] != gallery.shape[1]:
        raise ValueError(
            f"probes {tuple(probes.shape)} and gallery {tuple(gallery.shape)} must be rows of one "
            "length; are they from one model?"
        )
    k = min(k, len(gallery))
    if k < 1:
        raise ValueError("the gallery is empty, or k is below 1")
    high = max(1, min(len(probes), 1024))
    wide = max(k, scores_at_once // high)
    answers = []
    for part in probes.split(high):
        best, place = part.new_empty(len(part), 0), torch.empty(0)
        for start in range(0, len(gallery), wide):
            scores = part @ gallery[start : start + wide].T
            found, at = scores.topk(min(k, scores.shape[1]), dim=1)
            at += start
            if best.shape[1]:
                found, at = torch.cat([best, found], dim=1), torch.cat([place, at], dim=1)
                found, kept = found.topk(min(k, found.shape[1]), dim=1)
                at = at.gather(1, kept)
            best, place = found, at
        answers.append((best, place))
    if not answers:
        return probes.new_empty(0, k), torch.empty(0, k, dtype=torch.long, device=probes.device)
    scores, places = zip(*answers, strict=True)
    return torch.cat(scores), torch.cat(places)


def closed_set(
    probes: Tensor,
    gallery: Tensor,
    mates: Ints,
    ranks: Sequence[int] = RANKS,
    fpirs: Sequence[float] = FPIRS,
) -> ClosedSet:
    """Rank-k and TPIR at FPIR as InsightFace's `ijb_1n.py` counts them.

    An entry that scores as high as the mate counts as before it: a network that gives every image
    the same embedding finds nobody. InsightFace leaves such ties to the order of its sort.

    Args:
        probes: (p, dim) unit rows.
        gallery: (g, dim) unit rows, one for each subject.
        mates: (p,) place of each probe's subject in the gallery.
        ranks: The k of rank-k.
        fpirs: The wanted FPIRs.
    """
    wanted = [max(1, math.ceil(len(probes) * fpir)) for fpir in fpirs]
    highest = probes.new_empty(0)
    mate_scores, ranked = [], []
    for scores, part in _blocks(probes, gallery):
        mate = torch.from_numpy(mates[part]).to(scores.device).unsqueeze(1)
        of_mate = scores.gather(1, mate)
        mate_scores.append(of_mate.flatten())
        ranked.append((scores >= of_mate).sum(dim=1))  # the mate itself included
        others = scores.scatter_(1, mate, -math.inf).flatten()
        others = torch.cat([highest, others.topk(min(max(wanted), len(others))).values])
        highest = others.topk(min(max(wanted), len(others))).values
    own, rank = torch.cat(mate_scores), torch.cat(ranked)
    thresholds = [float(highest[min(count, len(highest)) - 1]) for count in wanted]
    return ClosedSet(
        num_probes=len(probes),
        num_gallery=len(gallery),
        ranks={k: float((rank <= k).double().mean()) for k in ranks},
        operating=[
            Operating(fpir, float((own > threshold).double().mean()), threshold)
            for fpir, threshold in zip(fpirs, thresholds, strict=True)
        ],
    )


def open_set(
    probes: Tensor,
    gallery: Tensor,
    probe_subjects: Ints,
    gallery_subjects: Ints,
    fpirs: Sequence[float] = FPIRS,
) -> OpenSet:
    """TPIR at FPIR of probes some of whose subjects are not in the gallery.

    Args:
        probes: (p, dim) unit rows.
        gallery: (g, dim) unit rows.
        probe_subjects: (p,) whose each probe is.
        gallery_subjects: (g,) whose each entry is.
        fpirs: The wanted FPIRs.
    """
    scores, places = (answer.flatten().cpu().numpy() for answer in search(probes, gallery))
    mated = np.isin(probe_subjects, gallery_subjects)
    right = mated & (gallery_subjects[places] == probe_subjects)
    both_kinds = mated.any() and not mated.all()
    operating = []
    for fpir in fpirs:
        threshold = threshold_at_fpir(scores[~mated], fpir)
        hits = right & (scores > threshold)
        tpir = float(hits.sum() / mated.sum()) if both_kinds else math.nan
        operating.append(Operating(fpir, tpir, threshold))
    return OpenSet(int(mated.sum()), int((~mated).sum()), operating)


def threshold_at_fpir(unmated: Floats, fpir: float) -> float:
    """The lowest threshold that at most `fpir` of the scores (n,) are above.

    Args:
        unmated: Best score of each probe that has no mate in the gallery.
        fpir: Wanted false positive identification rate, in [0, 1).

    Returns:
        A threshold for `score > threshold`; NaN without scores.
    """
    if not 0 <= fpir < 1:
        raise ValueError(f"FPIR is a fraction in [0, 1), got {fpir}")
    if not len(unmated):
        return math.nan
    allowed = math.floor(fpir * len(unmated) + 1e-9)  # 0.07 * 100 is a little above 7
    return float(np.sort(unmated)[::-1][allowed])


def leave_one_out(rows: Tensor, subjects: Ints, gallery: Tensor, gallery_subjects: Ints) -> Floats:
    """Best score of each row among the other people of the gallery; rows without any are left out.

    Estimates the scores of people who are not in the gallery, for a threshold at a wanted FPIR.
    """
    _, entries = np.unique(gallery_subjects, return_counts=True)
    k = int(entries.max(initial=0)) + 1  # at least one of them is of another person
    scores, places = search(rows, gallery, k)
    own = torch.from_numpy(subjects[:, None] == gallery_subjects[places.cpu().numpy()])
    best = scores.masked_fill_(own.to(scores.device), -math.inf).amax(dim=1)
    found: Floats = best.double().cpu().numpy()
    return found[np.isfinite(found)]


def _blocks(probes: Tensor, gallery: Tensor) -> Iterator[tuple[Tensor, slice]]:
    """Scores of some probes with all of the gallery, and which probes."""
    high = max(1, SCORES_AT_ONCE // max(1, len(gallery)))
    for start in range(0, len(probes), high):
        part = slice(start, min(start + high, len(probes)))
        yield probes[part] @ gallery.T, part
