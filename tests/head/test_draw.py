"""The draw keeps the batch's classes, is uniform over the rest, and costs what it returns."""

import math

import pytest
import torch
from torch import Tensor

import facescale
from facescale.distributed import Mesh
from facescale.head import draw as drawing
from facescale.head.draw import NONE, Sample, draw_rows
from facescale.head.share import Share
from facescale.random import key
from triton_process import interpreted, needs_triton


def draw(num_rows: int, own: list[int], num_sample: int, seed: int) -> tuple[Tensor, Tensor]:
    return draw_rows(torch.tensor(own, dtype=torch.long), num_rows, num_sample, key(seed))


def drawn(num_rows: int, own: list[int], num_sample: int, seed: int) -> list[int]:
    rows, _ = draw(num_rows, own, num_sample, seed)
    return rows[rows != NONE].tolist()


def test_rows_are_different_in_range_and_hold_the_batch() -> None:
    for seed in range(50):
        for num_rows, num_sample in ((100, 10), (100, 60), (100, 100), (7, 1), (10_000, 90)):
            own = [3, 0, 3, -5, 6, num_rows, 0]
            rows, place = draw(num_rows, own, num_sample, seed)
            assert len(rows) == num_sample + len(own)
            kept = rows[rows != NONE]
            assert len(kept.unique()) == len(kept)
            assert kept.min() >= 0
            assert kept.max() < num_rows
            assert (rows[:num_sample] != NONE).all()
            assert len(kept) == num_sample + len({0, 3, 6} - set(rows[:num_sample].tolist()))
            for row, at in zip(own, place.tolist(), strict=True):
                assert at == NONE if not 0 <= row < num_rows else rows[at] == row


def test_a_compact_sample_is_sorted_and_has_no_empty_slot() -> None:
    own = torch.tensor([30, -1, 7, 30, 99, 12])
    rows, place = draw_rows(own, 100, 40, key(1))
    sample = Sample(0, Share(Mesh(), [6], 0), rows, place).compact()
    assert sample.rows is not None
    assert torch.equal(sample.rows, rows[rows != NONE].sort().values)
    for row, at in zip(own.tolist(), sample.place.tolist(), strict=True):
        assert at == NONE if row < 0 else sample.rows[at] == row
    places, samples = sample.own()
    assert torch.equal(sample.rows[places], own[samples])
    assert samples.tolist() == [2, 5, 0, 3, 4]


def test_a_shard_without_rows_draws_none() -> None:
    rows, place = draw(0, [5, 2], 0, 0)
    assert set(rows.tolist()) == set(place.tolist()) == {NONE}
    assert len(Sample(0, Share(Mesh(), [2], 0), rows, place).compact().rows) == 0  # type: ignore[arg-type]


def test_every_other_row_is_equally_likely_and_every_pair() -> None:
    for num_rows, num_sample in ((40, 6), (40, 30), (37, 9)):
        draws, own = 6000, [2, 17, 36, 2]
        joined = torch.zeros(draws, num_rows)
        for seed in range(draws):
            joined[seed, drawn(num_rows, own, num_sample, seed)] = 1
        others = torch.ones(num_rows, dtype=torch.bool)
        others[own] = False
        assert joined[:, own].eq(1).all()
        chance = num_sample / num_rows
        deviations = (joined[:, others].sum(0) - draws * chance) / math.sqrt(
            draws * chance * (1 - chance)
        )
        assert deviations.abs().max() < 4.5  # 37 normal deviates
        assert 0.4 < deviations.var().item() < 1.9
        # Two rows together: without replacement.
        both = chance * (num_sample - 1) / (num_rows - 1)
        pairs = (joined[:, others].T @ joined[:, others]).triu(1)
        pairs = pairs[torch.ones_like(pairs).triu(1) > 0]
        deviations = (pairs - draws * both) / math.sqrt(draws * both * (1 - both))
        assert deviations.abs().max() < 5  # 600 of them
        assert 0.8 < deviations.var().item() < 1.2


def test_cost_does_not_grow_with_the_rows() -> None:
    # 2**60 rows: anything proportional to them would not end.
    assert len(drawn(2**60, [5], 1000, 0)) == 1001


@pytest.mark.parametrize("num_rows", [1, 5, 1000, 360_232, 10**9])
def test_compiled_and_torch_draw_the_same_rows(
    monkeypatch: pytest.MonkeyPatch, num_rows: int
) -> None:
    arguments = (num_rows, [0, num_rows - 1, num_rows // 2], min(num_rows, 500), 4)
    compiled = draw(*arguments)
    monkeypatch.setattr(drawing, "library", lambda name: None)
    for one, other in zip(compiled, draw(*arguments), strict=True):
        assert torch.equal(one, other)


def test_labels_alone_decide_the_draw_and_it_may_come_first() -> None:
    """Drawn before the embeddings are there, a step is the same to the bit."""
    answers = []
    for ahead in (True, False):
        head = facescale.MarginHead(500, 16, sample_rate=0.1)
        for step in range(3):
            random = torch.Generator().manual_seed(step)
            labels = torch.randint(500, (9,), generator=random)
            sample = head.draw(labels) if ahead else labels
            embeddings = torch.randn(9, 16, generator=random).requires_grad_()
            head(embeddings, sample, lr=0.1).backward()
        assert embeddings.grad is not None
        answers.append((head.centres.table, embeddings.grad, head.num_steps))
    (table, gradient, steps), (other_table, other_gradient, other_steps) = answers
    assert torch.equal(table, other_table)
    assert torch.equal(gradient, other_gradient)
    assert steps == other_steps == 3


def test_a_sample_of_another_batch_is_refused() -> None:
    head = facescale.MarginHead(50, 16)
    with pytest.raises(ValueError, match="3 embeddings, but the sample was drawn for 2 labels"):
        head(torch.randn(3, 16), head.draw(torch.tensor([1, 2])), lr=0.1)


CASES = ((1500, 200), (1500, 1500), (1, 1), (70_001, 1), (360_232, 1100))


def draws_of_the_kernel() -> list[tuple[Tensor, Tensor]]:
    """In Triton's interpreter: the rows and places of each case."""
    return [draw_rows(samples(rows), rows, count, key(3, rows)) for rows, count in CASES]


def samples(rows: int) -> Tensor:
    """Rows of other shards, repeated ones, and many that are not drawn."""
    random = torch.Generator().manual_seed(rows)
    own = torch.randint(-rows // 8, rows + rows // 8 + 1, (70,), generator=random)
    return torch.cat([own, own[:9], torch.tensor([0, rows - 1, rows, -1])])


@needs_triton
def test_the_kernel_draws_what_the_cpu_draws() -> None:
    found = interpreted(draws_of_the_kernel)
    for (rows, count), (drawn_rows, place) in zip(CASES, found, strict=True):
        truth = draw_rows(samples(rows), rows, count, key(3, rows))
        assert torch.equal(drawn_rows, truth[0])
        assert torch.equal(place, truth[1])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_draws_the_rows_of_the_cpu() -> None:
    own = torch.randint(-500, 2000, (64,), generator=torch.Generator().manual_seed(0))
    on_cpu = draw_rows(own, 1500, 200, key(3))
    on_cuda = draw_rows(own.to("cuda"), 1500, 200, key(3))
    for one, other in zip(on_cpu, on_cuda, strict=True):
        assert torch.equal(one, other.cpu())
