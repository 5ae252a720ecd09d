"""Searches in blocks against all scores at once, and thresholds against counting."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from facescale.evaluation import identification
from facescale.evaluation.identification import (
    closed_set,
    leave_one_out,
    open_set,
    search,
    threshold_at_fpir,
)
from facescale.evaluation.ivf import IvfIndex


def unit(count: int, dim: int, seed: int) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(count, dim, generator=random, dtype=torch.float64))


@pytest.mark.parametrize("scores_at_once", [1, 40, 700, 1 << 20])
@pytest.mark.parametrize("k", [1, 3, 50])
def test_blocks_find_what_a_whole_sort_finds(scores_at_once: int, k: int) -> None:
    probes, gallery = unit(9, 5, 0), unit(31, 5, 1)
    scores, places = search(probes, gallery, k, scores_at_once)
    expected = (probes @ gallery.T).sort(dim=1, descending=True)
    torch.testing.assert_close(scores, expected.values[:, :k])
    assert places.tolist() == expected.indices[:, :k].tolist()


def test_probes_of_many_blocks_stay_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    probes, gallery = unit(2100, 3, 0), unit(5, 3, 1)
    scores, places = search(probes, gallery)
    assert places.flatten().tolist() == (probes @ gallery.T).argmax(dim=1).tolist()
    assert scores.shape == (2100, 1)


def test_rows_of_another_model_and_an_empty_gallery_are_refused() -> None:
    with pytest.raises(ValueError, match="are they from one model"):
        search(unit(2, 4, 0), unit(2, 5, 0))
    with pytest.raises(ValueError, match="gallery is empty"):
        search(unit(2, 4, 0), unit(0, 4, 0))
    assert search(unit(0, 4, 0), unit(3, 4, 0))[0].shape == (0, 1)


@pytest.mark.parametrize("scores_at_once", [1, 100, 1 << 20])
def test_the_closed_set_is_counted_as_with_all_scores_sorted(
    monkeypatch: pytest.MonkeyPatch, scores_at_once: int
) -> None:
    monkeypatch.setattr(identification, "SCORES_AT_ONCE", scores_at_once)
    gallery = unit(17, 6, 3)
    mates = np.random.default_rng(0).integers(0, 17, 45)
    probes = normalize(gallery[mates] + 0.8 * unit(45, 6, 4))
    found = closed_set(probes, gallery, mates)
    scores = (probes @ gallery.T).numpy()
    order = np.argsort(-scores, axis=1)
    for k, rate in found.ranks.items():
        hits = [mate in row[:k] for mate, row in zip(mates, order, strict=True)]
        assert rate == np.mean(hits)
    assert 0 < found.ranks[1] < 1
    others = np.ones(scores.shape, bool)
    others[np.arange(45), mates] = False
    falling = np.sort(scores[others])[::-1]
    own = scores[np.arange(45), mates]
    for point in found.operating:
        threshold = falling[math.ceil(45 * point.fpir) - 1]
        assert point.threshold == pytest.approx(threshold)
        assert point.tpir == np.mean(own > threshold)


def test_an_entry_that_ties_with_the_mate_counts_before_it() -> None:
    people = torch.eye(4, dtype=torch.float64)
    gallery = people[[0, 0, 1, 2]]  # two subjects with one embedding
    assert closed_set(gallery, gallery, np.arange(4), ranks=(1, 2)).ranks == {1: 0.5, 2: 1.0}
    alike = people[:1].expand(12, 4)  # a network that has collapsed
    assert closed_set(alike, alike, np.arange(12)).ranks == {1: 0.0, 5: 0.0, 10: 0.0}


def test_the_open_set_lets_no_more_strangers_in_than_wanted() -> None:
    gallery, subjects = unit(20, 8, 5), np.arange(20)
    probe_subjects = np.arange(400) % 40  # half of them strangers
    people = torch.cat([gallery, unit(20, 8, 6)])
    probes = normalize(people[probe_subjects] + 0.7 * unit(400, 8, 7))
    found = open_set(probes, gallery, probe_subjects, subjects, fpirs=(0.0, 0.01, 0.1))
    assert (found.num_mated, found.num_unmated) == (200, 200)
    scores = (probes @ gallery.T).numpy()
    best, place = scores.max(axis=1), scores.argmax(axis=1)
    stranger = probe_subjects >= 20
    for point in found.operating:
        assert np.mean(best[stranger] > point.threshold) == pytest.approx(point.fpir)
        right = (place == probe_subjects) & (best > point.threshold)
        assert point.tpir == np.mean(right[~stranger])
    assert found.operating[0].tpir < found.operating[2].tpir


def test_the_threshold_is_the_lowest_that_keeps_the_fpir() -> None:
    scores = np.random.default_rng(0).permutation(100) / 100
    assert threshold_at_fpir(scores, 0.07) == 0.92
    assert threshold_at_fpir(scores, 0.0) == 0.99
    assert math.isnan(threshold_at_fpir(np.empty(0), 0.1))
    with pytest.raises(ValueError, match="FPIR is a fraction"):
        threshold_at_fpir(scores, 1.0)


def test_a_person_is_left_out_of_the_gallery() -> None:
    gallery, labels = unit(6, 4, 8), np.array([0, 0, 1, 2, 2, 2])
    found = leave_one_out(gallery, labels, gallery, labels)
    scores = (gallery @ gallery.T).numpy()
    expected = [scores[i][labels != labels[i]].max() for i in range(6)]
    np.testing.assert_allclose(found, expected)
    alone = leave_one_out(gallery[:2], labels[:2], gallery[:2], labels[:2])
    assert len(alone) == 0


def test_faiss_finds_almost_what_the_exact_search_finds() -> None:
    pytest.importorskip("faiss", reason="approximate search needs the extra 'search'")
    gallery, probes = unit(5000, 16, 0).float(), unit(200, 16, 1).float()
    scores, places = search(probes, gallery, 5)
    everywhere = IvfIndex(gallery, probed_part=1.0)(probes, 5)
    torch.testing.assert_close(everywhere[0], scores)
    _, near = IvfIndex(gallery, probed_part=0.3)(probes, 5)
    assert (near[:, 0] == places[:, 0]).float().mean() > 0.8
    few = IvfIndex(gallery[:400], probed_part=0.01)
    scores, places = few(probes, 300)  # more than one cluster has
    assert few.clusters > 2
    assert places.min() >= 0
    torch.testing.assert_close(scores, search(probes, gallery[:400], 300)[0])
    with pytest.raises(ValueError, match="8 numbers each, the gallery 16; are they from one model"):
        few(probes[:, :8], 1)


@pytest.mark.slow
@pytest.mark.parametrize(("people", "dim"), [(10_000, 512), (1_000_000, 512), (10_000_000, 128)])
def test_time_of_a_query(people: int, dim: int) -> None:
    """Prints the time of one query and of one among 256; pytest -m slow -s shows it."""
    import time

    torch.set_num_threads(2)
    gallery = torch.empty(people, dim).uniform_(-1, 1)
    for probes in (1, 256):
        rows = torch.empty(probes, dim).uniform_(-1, 1)
        search(rows[:1], gallery[:1000])
        times = []
        for _ in range(3):
            begin = time.perf_counter()
            scores, places = search(rows, gallery)
            times.append((time.perf_counter() - begin) / probes)
        print(f"\n{people:,} people, {dim}-d, {probes} queries: {1000 * min(times):.3g} ms each")
        assert torch.equal((rows * gallery[places[:, 0]]).sum(dim=1) > 0, scores[:, 0] > 0)
