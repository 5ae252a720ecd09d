"""Class centres in fewer bits, and rows that begin when they are first read."""

from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

import facescale
from conftest import RunRanks
from facescale.distributed import Group
from facescale.head import startvalues
from facescale.head.centres import ClassCentres
from facescale.head.rows import FORMATS
from facescale.head.startvalues import start_values
from facescale.head.walks.cpu import CompiledWalk
from facescale.kernels.cpu import build
from facescale.random import key

FEW_BITS = [torch.bfloat16, torch.int8]
LEVEL = {torch.bfloat16: 2.0**-7, torch.int8: 1.25 / 127}
"""Distance of neighbouring numbers, of the number itself or of the largest of the row."""


def random_rows(count: int = 50, dim: int = 64) -> Tensor:
    return torch.randn(count, 2, dim, generator=torch.Generator().manual_seed(3))


def bits_for(rows: Tensor, step: int) -> Tensor:
    """Random bits for each number of `rows`, others in each step."""
    bits: Tensor = key(7, step).bits(torch.arange(rows.numel())).view(rows.shape)
    return bits


def stored(rows: Tensor, dtype: torch.dtype) -> Tensor:
    row_format = FORMATS[dtype]
    shape = (*rows.shape[:2], rows.shape[2] + row_format.extra)
    return torch.zeros(shape, dtype=row_format.stored)


@pytest.mark.parametrize("dtype", FEW_BITS)
def test_a_row_comes_back_within_a_level_and_by_chance_on_average(dtype: torch.dtype) -> None:
    rows, total, rounds = random_rows(), torch.zeros(50, 2, 64), 2000
    largest = rows.abs().amax(dim=2, keepdim=True)
    level = LEVEL[dtype] * (largest if dtype == torch.int8 else rows.abs())
    for step in range(rounds):
        kept = stored(rows, dtype)
        FORMATS[dtype].encode_(kept, rows.clone(), bits_for(rows, step))
        back = FORMATS[dtype].decode(kept, torch.empty_like(rows))
        assert ((back - rows).abs() <= level * 1.001).all()
        total += back
    # The mean of 2,000 draws with a deviation of at most half a level: 6 deviations.
    assert ((total / rounds - rows).abs() <= 6 * 0.5 * level / rounds**0.5 + 1e-6).all()


def test_a_row_of_8_bits_that_does_not_change_keeps_every_bit() -> None:
    rows, eight = random_rows(), FORMATS[torch.int8]
    kept = stored(rows, torch.int8)
    eight.encode_(kept, rows.clone(), None)
    before = kept.clone()
    for step in range(5):
        numbers = eight.decode(kept, torch.empty_like(rows))
        eight.encode_(kept, numbers, bits_for(rows, step))
    # A level is a product with the scale, rounded: as likely as 1e-7 the noise sees less than it.
    assert (kept != before).float().mean() < 1e-3


def test_start_values_are_normal_and_belong_to_the_class_alone() -> None:
    values = start_values(5, torch.arange(4000), 64)
    assert values.std().item() == pytest.approx(0.01, rel=0.01)
    assert values.mean().item() == pytest.approx(0, abs=1e-4)
    kurtosis = (values / values.std()).pow(4).mean().item()
    assert kurtosis == pytest.approx(3, abs=0.05)
    some = torch.tensor([3, 77, 3999])
    assert torch.equal(start_values(5, some, 64), values[some])
    assert not torch.equal(start_values(6, some, 64), values[some])
    torch.testing.assert_close(start_values(5, some, 33), values[some, :33], rtol=0, atol=1e-8)


@pytest.mark.parametrize("dim", [1, 5, 64, 513])
def test_start_values_are_the_same_without_a_compiler(
    monkeypatch: pytest.MonkeyPatch, dim: int
) -> None:
    classes = torch.tensor([0, 1, 77, 2**31, 2**32 + 5])
    compiled = start_values(5, classes, dim)
    monkeypatch.setattr(startvalues, "library", lambda name: None)
    # log, sin and cos of float32 differ in their last bits; the largest value is 0.05.
    torch.testing.assert_close(start_values(5, classes, dim), compiled, rtol=0, atol=2e-8)


@pytest.mark.parametrize("compiled", [True, False], ids=["compiled", "blocks"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("dtype", FEW_BITS)
def test_a_row_that_is_no_longer_finite_stops_the_next_step(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, bad: float, compiled: bool
) -> None:
    if not compiled:
        monkeypatch.setattr(CompiledWalk, "serves", lambda step: False)
    head = facescale.MarginHead(40, 64, facescale.cosface(0.2), 8.0, dtype=dtype)
    embeddings, labels = torch.randn(5, 64), torch.arange(5)
    loss = head(embeddings.clone().requires_grad_(), labels, lr=0.1)
    (loss * bad).backward()  # every centre moves by a number that is not finite
    assert not head.centres.weight(slice(0, 40)).isfinite().any()
    assert head(embeddings, labels, lr=0.1).isnan()


@pytest.mark.parametrize("dtype", [torch.float32, *FEW_BITS])
def test_a_row_begins_when_it_is_read_and_not_before(dtype: torch.dtype) -> None:
    centres = ClassCentres(1000, 16, Group(), dtype=dtype, seed=4)
    assert not centres.table.count_nonzero()
    rows = torch.tensor([2, 500, 999])
    truth = start_values(4, rows, 16)
    within = LEVEL[torch.int8] * truth.abs().max().item()
    torch.testing.assert_close(centres.weight(rows), truth, rtol=0, atol=within)
    assert centres.table.flatten(1).any(dim=1).nonzero().flatten().tolist() == rows.tolist()
    centres.start_()
    assert centres.table.flatten(1).any(dim=1).all()
    centres.table.zero_()
    centres.look_again_()
    torch.testing.assert_close(centres.weight(rows), truth, rtol=0, atol=within)
    centres.put_(rows[1:], torch.zeros(2, 2, 16))
    torch.testing.assert_close(centres.weight(rows), truth, rtol=0, atol=within)


@pytest.mark.parametrize(
    ("dtype", "rate", "compiled"),
    [
        (torch.bfloat16, 1.0, True),
        (torch.bfloat16, 0.3, False),
        (torch.int8, 0.3, True),
        (torch.int8, 1.0, False),
        pytest.param(torch.bfloat16, 1.0, False, marks=pytest.mark.slow),
        pytest.param(torch.bfloat16, 0.3, True, marks=pytest.mark.slow),
        pytest.param(torch.int8, 0.3, False, marks=pytest.mark.slow),
        pytest.param(torch.int8, 1.0, True, marks=pytest.mark.slow),
    ],
)
def test_small_steps_are_not_lost(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, rate: float, compiled: bool
) -> None:
    """A thousand steps, each far below a level, move a centre as far as in float32."""
    if not compiled:
        monkeypatch.setattr(CompiledWalk, "serves", lambda step: False)
    elif reason := build.missing():
        pytest.skip(reason)
    exact, rounded = exactly_moved(rate), moved(dtype, rate)
    along = (exact * rounded).sum() / exact.square().sum()
    assert along.item() == pytest.approx(1.0, abs=0.1)


def moved(dtype: torch.dtype, rate: float) -> Tensor:
    """How far a thousand steps move the centres of the batch."""
    head = facescale.MarginHead(
        40, 64, facescale.cosface(0.2), 8.0, rate, dtype=dtype, momentum=0.0, weight_decay=0.0
    )
    before = head.centres.full().clone()
    embeddings = torch.randn(20, 64, generator=torch.Generator().manual_seed(1))
    for _ in range(1000):
        head(embeddings.requires_grad_(), torch.arange(20), lr=1e-6).backward()
    return (head.centres.full() - before)[:20]


@cache
def exactly_moved(rate: float) -> Tensor:
    """The same in float32, by whichever walk comes first."""
    return moved(torch.float32, rate)


def trained(rank: int, dtype: torch.dtype, shards: int) -> Tensor:
    head = facescale.MarginHead(300, 32, facescale.cosface(0.2), 16.0, 1.0, shards, dtype, seed=2)
    random = torch.Generator().manual_seed(rank)
    for _ in range(5):
        embeddings = torch.randn(4, 32, generator=random).requires_grad_()
        head(embeddings, torch.randint(300, (4,), generator=random), 0.1).backward()
    return head.centres.table


@pytest.mark.parametrize("dtype", FEW_BITS)
def test_copies_of_a_shard_round_alike(run_ranks: RunRanks, dtype: torch.dtype) -> None:
    one, other = run_ranks(trained, 2, dtype, 1)
    assert torch.equal(one, other)
    # Rounding is a function of the class, not of the shard that has it: two shards hold the rows of
    # one, but where five steps' float rounding has crossed a level. Else half of them would differ.
    parts = torch.cat(run_ranks(trained, 2, dtype, 2))
    assert (parts == one).float().mean() > 0.95


@pytest.mark.parametrize("dtype", FEW_BITS)
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_bytes_of_an_identity(dtype: torch.dtype, momentum: float) -> None:
    head = facescale.MarginHead(100, 512, dtype=dtype, momentum=momentum)
    row = {torch.bfloat16: 1024, torch.int8: 516}[dtype]
    assert head.centres.table.nbytes == 100 * row * (2 if momentum else 1)


def test_without_momentum_it_is_the_same_step(tmp_path: Path) -> None:
    tables = []
    for momentum in (0.0, 1e-300):
        head = facescale.MarginHead(30, 8, dtype=torch.float64, momentum=momentum)
        for _ in range(3):
            embeddings = torch.eye(8, dtype=torch.float64).requires_grad_()
            head(embeddings, torch.arange(8), 0.5).backward()
        tables.append(head.centres.table[:, 0].clone())
    torch.testing.assert_close(tables[0], tables[1], rtol=0, atol=1e-15)


def test_what_does_not_fit_is_said_before_the_run() -> None:
    said = r"10000000000 class centres need 38147.0 GiB, and .* are available; store them in bf"
    with pytest.raises(MemoryError, match=said):
        facescale.MarginHead(10**10, 512)


def test_int8_needs_whole_words() -> None:
    with pytest.raises(ValueError, match="need a dim that 4 divides, got 6"):
        facescale.MarginHead(10, 6, dtype=torch.int8)
