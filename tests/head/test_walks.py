"""The compiled walk over the class centres takes the same step as the one in torch's operations."""

import subprocess
import sys
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

import facescale
from conftest import RunRanks
from facescale.head import register_walk, walks
from facescale.head.step import Step
from facescale.head.walks.blocks import BlockWalk
from facescale.head.walks.cpu import CompiledWalk
from facescale.kernels.cpu import build
from reference import dense_combined, dense_filter, dense_step

Name = Literal["compiled", "blocks"]

needs_kernels = pytest.mark.skipif(bool(build.missing()), reason=str(build.missing()))


def take_steps(
    name: Name,
    monkeypatch: pytest.MonkeyPatch,
    batch: int,
    dim: int,
    *,
    steps: int = 2,
    **kind: object,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Loss and embedding gradient of the last step; weights and momenta after it."""
    values: dict[str, Any] = {"margin": facescale.cosface(0.3), "scale": 32.0} | kind
    with monkeypatch.context() as patch:
        if name == "blocks":
            patch.setattr(CompiledWalk, "serves", lambda step: False)
        head = facescale.MarginHead(700, dim, **values)
        random = torch.Generator().manual_seed(2)
        for _ in range(steps):
            embeddings = torch.randn(batch, dim, generator=random).requires_grad_()
            labels = torch.randint(700, (batch,), generator=random)
            loss = head(embeddings, labels, lr=0.1)
            loss.backward()
    gradient = embeddings.grad
    assert gradient is not None
    rows = head.centres.read(slice(0, 700))
    return loss.detach(), gradient, *(numbers.clone() for numbers in rows)


@needs_kernels
@pytest.mark.parametrize(("batch", "dim"), [(1, 4), (7, 20), (70, 512), (300, 64)])
@pytest.mark.parametrize(
    "kind",
    [
        {},
        {"sample_rate": 0.5},
        {"sample_rate": 0.1, "logits_budget": 10_000},
        {"momentum": 0.0, "sample_rate": 0.3},
        {"margin": facescale.arcface(0.5), "scale": 64.0, "weight_decay": 0.0},
    ],
    ids=str,
)
def test_float32_steps_differ_by_rounding_alone(
    monkeypatch: pytest.MonkeyPatch, batch: int, dim: int, kind: dict[str, Any]
) -> None:
    compiled = take_steps("compiled", monkeypatch, batch, dim, **kind)
    blocks = take_steps("blocks", monkeypatch, batch, dim, **kind)
    for one, other in zip(compiled, blocks, strict=True):
        scale = other.abs().max().item()
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * scale)


@needs_kernels
@pytest.mark.parametrize("rate", [1.0, 0.4])
@pytest.mark.parametrize("momentum", [0.9, 0.0])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8], ids=str)
def test_rows_of_few_bits_are_rounded_alike(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, momentum: float, rate: float
) -> None:
    kind = {"dtype": dtype, "momentum": momentum, "sample_rate": rate}
    compiled = take_steps("compiled", monkeypatch, 20, 64, steps=1, **kind)
    blocks = take_steps("blocks", monkeypatch, 20, 64, steps=1, **kind)
    for one, other in zip(compiled[:2], blocks[:2], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    for one, other in zip(compiled[2:], blocks[2:], strict=True):
        # The random bits are the same, so only float32 sums that differ in their last bits make a
        # difference: a number in many thousands crosses a level. Else half of them would differ.
        largest = other.abs().amax(dim=1, keepdim=True)
        assert ((one - other).abs() > 1e-5 * largest).float().mean() < 1e-3
        assert ((one - other).abs() <= 2.6 / 127 * largest).all()


def truth_of(
    head: facescale.MarginHead, margin: tuple[float, float, float], scale: float, batch: int
) -> list[tuple[Tensor, Tensor]]:
    """Pairs of this head's answer after each of three steps, and the dense float64 truth."""
    weight, velocity = head.centres.full().double(), torch.zeros(head.num_classes, 32).double()
    filtered = head.interclass_filter
    random, pairs = torch.Generator().manual_seed(2), []
    for _ in range(3):
        embeddings = torch.randn(batch, 32, generator=random).requires_grad_()
        labels = torch.randint(head.num_classes, (batch,), generator=random)
        sample = head.draw(labels)
        rows = sample.compact().rows
        drawn = range(head.num_classes) if rows is None else rows.tolist()
        loss = head(embeddings, sample, lr=0.2)
        loss.backward()
        true_loss, gradient, weight, velocity = dense_step(
            *(embeddings.detach().double(), labels, weight, velocity, drawn),
            margin=dense_combined(*margin),
            scale=scale,
            lr=0.2,
            momentum=0.9,
            weight_decay=5e-4,
            others=None if filtered is None else dense_filter(filtered),
        )
        moved = head.centres.read(slice(0, head.num_classes))
        pairs += [(loss.detach(), true_loss), (embeddings.grad, gradient)]
        pairs += [(moved[0].clone(), weight), (moved[1].clone(), velocity)]
    return pairs


@pytest.mark.parametrize("name", [pytest.param("compiled", marks=needs_kernels), "blocks"])
@pytest.mark.parametrize(
    ("margin", "scale"), [((1.0, 0.5, 0.0), 64.0), ((1.0, 0.0, 0.4), 30.0), ((1.1, 0.3, 0.2), 16.0)]
)
@pytest.mark.parametrize(("classes", "batch", "rate"), [(700, 20, 1.0), (5000, 300, 0.6)])
def test_float32_steps_are_the_dense_float64_ones(
    monkeypatch: pytest.MonkeyPatch,
    name: Name,
    margin: tuple[float, float, float],
    scale: float,
    classes: int,
    batch: int,
    rate: float,
) -> None:
    if name == "blocks":
        monkeypatch.setattr(CompiledWalk, "serves", lambda step: False)
    head = facescale.MarginHead(classes, 32, facescale.combined(*margin), scale, rate)
    assert_close(truth_of(head, margin, scale, batch))


def assert_close(pairs: list[tuple[Tensor, Tensor]]) -> None:
    for ours, truth in pairs:
        # A cosine is off by 2**-24 or so, hence a probability by 64 * 2**-24 = 4e-6 of itself;
        # three steps follow each other.
        scale_of = truth.abs().max().item()
        torch.testing.assert_close(ours.double(), truth, rtol=0, atol=1e-5 * scale_of)


@pytest.mark.parametrize("name", [pytest.param("compiled", marks=needs_kernels), "blocks"])
@pytest.mark.parametrize("budget", [None, 40_000])
def test_filtered_steps_are_the_dense_float64_ones(
    monkeypatch: pytest.MonkeyPatch, name: Name, budget: int | None
) -> None:
    """With a filter that leaves out a fourth of all cosines, logits kept or computed again."""
    if name == "blocks":
        monkeypatch.setattr(CompiledWalk, "serves", lambda step: False)
    head = facescale.MarginHead(
        2000, 32, facescale.arcface(0.5), 32.0, 0.6, interclass_filter=0.12, logits_budget=budget
    )
    assert_close(truth_of(head, (1.0, 0.5, 0.0), 32.0, 50))


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.int8])
def test_the_same_steps_twice_are_equal_to_the_bit(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    once, again = (
        take_steps("compiled", monkeypatch, 20, 64, sample_rate=0.5, dtype=dtype) for _ in range(2)
    )
    for one, other in zip(once, again, strict=True):
        assert torch.equal(one, other)


@needs_kernels
def test_what_is_kept_between_the_passes_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    kept, again, partly = (
        take_steps("compiled", monkeypatch, 20, 64, logits_budget=budget)
        for budget in (1 << 30, 0, 4 * 20 * 333)
    )
    for one, other, third in zip(kept, again, partly, strict=True):
        assert torch.equal(one, other)
        assert torch.equal(one, third)


@pytest.mark.parametrize("name", [pytest.param("compiled", marks=needs_kernels), "blocks"])
def test_a_centre_that_is_not_a_number_is_not_hidden(
    monkeypatch: pytest.MonkeyPatch, name: Name
) -> None:
    if name == "blocks":
        monkeypatch.setattr(CompiledWalk, "serves", lambda step: False)
    head = facescale.MarginHead(700, 16)
    head.centres.start_()
    head.centres.table[345, 0, 3] = torch.nan
    assert head(torch.randn(5, 16), torch.arange(5), lr=0.1).isnan()


def steps_of_a_rank(
    rank: int, shards: int, dtype: torch.dtype, kernels: bool
) -> tuple[Tensor, Tensor]:
    """All centres and this rank's embedding gradient after three steps."""
    if not kernels:
        CompiledWalk.serves = staticmethod(lambda step: False)  # type: ignore[method-assign]
    head = facescale.MarginHead(
        5000, 16, facescale.cosface(0.2), 16.0, 0.9, shards, dtype=dtype, seed=3
    )
    random = torch.Generator().manual_seed(rank)
    for _ in range(3):
        embeddings = torch.randn(4 + rank, 16, generator=random).requires_grad_()
        head(embeddings, torch.randint(5000, (4 + rank,), generator=random), lr=0.3).backward()
    assert embeddings.grad is not None
    return head.centres.full(), embeddings.grad


@needs_kernels
@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize(
    ("dtype", "level"), [(torch.float32, 1e-5), (torch.bfloat16, 0.03)], ids=str
)
def test_shards_and_copies_of_them_learn_alike(
    run_ranks: RunRanks, shards: int, dtype: torch.dtype, level: float
) -> None:
    compiled = run_ranks(steps_of_a_rank, 2, shards, dtype, True)
    blocks = run_ranks(steps_of_a_rank, 2, shards, dtype, False)
    assert torch.equal(compiled[0][0], compiled[1][0])
    for ours, truth in zip(compiled, blocks, strict=True):
        for one, other in zip(ours, truth, strict=True):
            scale = level * other.abs().max().item()
            torch.testing.assert_close(one, other, rtol=level, atol=scale)


THREADS = """
import torch, facescale
tables = []
for threads in (1, 3):
    torch.set_num_threads(threads)
    head = facescale.MarginHead(2000, 64, sample_rate=0.5)
    random = torch.Generator().manual_seed(2)
    for _ in range(3):
        embeddings = torch.randn(9, 64, generator=random).requires_grad_()
        head(embeddings, torch.randint(2000, (9,), generator=random), lr=0.1).backward()
    tables.append((head.centres.table, embeddings.grad))
for one, other in zip(*tables):
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
"""


@needs_kernels
def test_threads_share_the_rows_without_a_gap() -> None:
    subprocess.run([sys.executable, "-c", THREADS], check=True)


def test_a_walk_from_outside_is_tried_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walks, "WALKS", list(walks.WALKS))
    seen: list[int] = []

    @register_walk
    class Noted(BlockWalk):
        @staticmethod
        def serves(step: Step) -> bool:
            return len(step.batch) > 3

        def forward(self) -> tuple[Tensor, Tensor]:
            seen.append(len(self.step.batch))
            return super().forward()

    head = facescale.MarginHead(50, 16)
    for size in (2, 5):
        head(torch.randn(size, 16).requires_grad_(), torch.arange(size), lr=0.1).backward()
    assert seen == [5]
