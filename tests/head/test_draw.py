"""The draw keeps positives, is uniform over the rest, and costs what it returns."""

import torch

from facescale.head.draw import draw_rows


def draw(num_rows: int, positives: list[int], num_sample: int, seed: int) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    return draw_rows(num_rows, torch.tensor(positives, dtype=torch.long), num_sample, random)


def test_sorted_distinct_in_range_with_all_positives() -> None:
    for seed in range(50):
        for num_rows, num_sample in ((100, 10), (100, 60), (100, 100), (7, 1), (10_000, 90)):
            positives = [0, 3, 6]
            rows = draw(num_rows, positives, num_sample, seed)
            assert len(rows) == max(num_sample, 3)
            assert torch.equal(rows, rows.unique())
            assert set(positives) <= set(rows.tolist())
            assert rows.min() >= 0
            assert rows.max() < num_rows


def test_more_positives_than_the_sample_are_all_kept() -> None:
    assert draw(100, [1, 5, 9, 50], 2, 0).tolist() == [1, 5, 9, 50]


def test_every_other_row_is_equally_likely() -> None:
    for num_rows, num_sample in ((40, 6), (40, 30)):  # both ways of drawing
        draws, positives = 6000, [2, 17, 39]
        counts = torch.zeros(num_rows)
        for seed in range(draws):
            counts[draw(num_rows, positives, num_sample, seed)] += 1
        others = torch.ones(num_rows, dtype=torch.bool)
        others[positives] = False
        chance = (num_sample - 3) / (num_rows - 3)
        expected = draws * chance
        deviations = (counts[others] - expected) / (draws * chance * (1 - chance)) ** 0.5
        assert counts[positives].eq(draws).all()
        assert deviations.abs().max() < 4.5  # 37 normal deviates
        assert 0.4 < deviations.var().item() < 1.9


def test_cost_does_not_grow_with_the_rows() -> None:
    # 2**60 rows: anything proportional to them would not end.
    rows = draw(2**60, [5], 1000, 0)
    assert len(rows) == 1000
