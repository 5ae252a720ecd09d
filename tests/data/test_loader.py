import math
import threading
import time
from itertools import pairwise, permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from facescale.data import loader as loading
from facescale.data.dataset import open_dataset
from facescale.data.images import Sample, decode
from facescale.data.loader import Batch, Loader
from facescale.data.order import EpochOrder
from facescale.data.synthetic import Synthetic
from facescale.data.unreadable import UnreadableRecord
from shared_data import shared_data


def epoch(order: EpochOrder, number: int) -> list[int]:
    start = number * order.num_images
    indices = order.indices(np.arange(start, start + order.num_images))
    return [int(index) for index in indices]


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 7, 10, 99, 100, 101, 1000, 4536, 65_537])
def test_every_epoch_is_a_permutation(n: int) -> None:
    order = EpochOrder(n, seed=3)
    for number in (0, 1, 10**6):
        assert sorted(epoch(order, number)) == list(range(n))


@settings(deadline=None)
@given(
    n=st.integers(1, 10**12),
    seed=st.integers(0, 2**63 - 1),
    positions=st.lists(st.integers(0, 10**15), min_size=1, max_size=20, unique=True),
)
def test_a_place_needs_no_other_place(n: int, seed: int, positions: list[int]) -> None:
    order = EpochOrder(n, seed)
    together = order.indices(np.array(positions))
    alone = [int(order.indices(np.array([position]))[0]) for position in positions]
    assert together.tolist() == alone
    assert all(0 <= index < n for index in alone)
    of_one_epoch = [i for p, i in zip(positions, alone, strict=True) if p // n == positions[0] // n]
    assert len(set(of_one_epoch)) == len(of_one_epoch)


@pytest.mark.parametrize("n", [2, 3, 4])
def test_small_sets_see_all_their_orders_equally_often(n: int) -> None:
    trials = 24_000
    order = EpochOrder(n, seed=0)
    rows = order.indices(np.arange(trials * n)).reshape(trials, n)
    counts = [(rows == np.array(one)).all(axis=1).sum() for one in permutations(range(n))]
    expected = trials / math.factorial(n)
    # chi-square with at most 23 degrees of freedom: 49.7 is passed once in 1,000
    assert sum((count - expected) ** 2 / expected for count in counts) < 49.7


def test_epochs_and_seeds_have_nothing_in_common() -> None:
    n = 4536
    rows = np.array([epoch(EpochOrder(n, s), e) for s in (0, 1, 2) for e in (0, 1, 2)])
    with_the_set = np.vstack([np.arange(n), rows])
    for correlation in (np.corrcoef(with_the_set), np.corrcoef(np.diff(rows))):
        off_diagonal = correlation[~np.eye(len(correlation), dtype=bool)]
        assert np.abs(off_diagonal).max() < 5 / math.sqrt(n)  # standard deviations of noise
    # Neighbours of one epoch are no neighbours in another: about 2 of 4,535 pairs by chance.
    pairs = [set(pairwise(row)) for row in rows.tolist()]
    assert max(len(a & b) for a in pairs for b in pairs if a is not b) < 12


def test_neighbours_in_the_stream_are_spread_over_the_set() -> None:
    step = np.diff(epoch(EpochOrder(10_000, seed=1), 0))
    counts, _ = np.histogram(np.abs(step), bins=10, range=(0, 10_000))
    # The distance of two random places falls linearly to 0.
    expected = np.array([19, 17, 15, 13, 11, 9, 7, 5, 3, 1]) * 99.99
    assert ((counts - expected) ** 2 / expected).sum() < 27.9  # chi-square, 9 degrees, 0.1 %


def test_an_empty_set_has_no_order() -> None:
    with pytest.raises(ValueError, match="num_images must be at least 1, got 0"):
        EpochOrder(0, seed=0)


def take(loader: Loader, count: int) -> list[Batch]:
    with loader:
        return [next(loader) for _ in range(count)]


def assert_same(one: Batch, other: Batch) -> None:
    assert one.position == other.position
    torch.testing.assert_close(one.images, other.images, rtol=0, atol=0)
    torch.testing.assert_close(one.labels, other.labels, rtol=0, atol=0)
    np.testing.assert_array_equal(one.indices, other.indices)


def test_a_batch_holds_what_the_order_says() -> None:
    faces = open_dataset(shared_data("cfp324"))
    order = EpochOrder(len(faces), seed=5)
    batches = take(Loader(faces, 30, seed=5, position=4520), 2)  # across the end of an epoch
    for batch, start in zip(batches, (4520, 4550), strict=True):
        indices = order.indices(np.arange(start, start + 30))
        assert (batch.position, batch.offset) == (start, 0)
        np.testing.assert_array_equal(batch.indices, indices)
        assert batch.images.dtype == torch.uint8
        assert batch.images.shape == (30, 3, 112, 112)
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        assert batch.labels.dtype == torch.int64
        for row, index in enumerate(indices.tolist()):
            encoded, label = faces.read(index)
            assert batch.labels[row] == label
            np.testing.assert_array_equal(batch.images[row].permute(1, 2, 0), decode(encoded))


@pytest.mark.parametrize(("batch_size", "world_size"), [(8, 1), (8, 2), (7, 3), (5, 4), (2, 3)])
def test_the_number_of_ranks_changes_nothing(batch_size: int, world_size: int) -> None:
    people = Synthetic(20, 50)
    truth = take(Loader(people, batch_size, seed=1), 9)
    ranks = [
        take(Loader(people, batch_size, seed=1, rank=rank, world_size=world_size), 9)
        for rank in range(world_size)
    ]
    share = -(-batch_size // world_size)
    for whole, *parts in zip(truth, *ranks, strict=True):
        sizes = [len(part.labels) for part in parts]
        assert sizes == [max(0, min(share, batch_size - r * share)) for r in range(world_size)]
        assert [part.offset for part in parts] == np.cumsum([0, *sizes[:-1]]).tolist()
        assert_same(
            whole,
            Batch(
                torch.cat([part.images for part in parts]),
                torch.cat([part.labels for part in parts]),
                parts[0].position,
                0,
                np.concatenate([part.indices for part in parts]),
            ),
        )


@pytest.mark.parametrize(("num_threads", "prefetch"), [(1, 0), (3, 1), (8, 5)])
def test_the_stream_goes_on_from_any_position(num_threads: int, prefetch: int) -> None:
    people = Synthetic(20, 50)
    whole = take(Loader(people, 6, seed=2), 12)
    loader = Loader(people, 6, seed=2, num_threads=num_threads, prefetch=prefetch)
    before = take(loader, 5)
    rest = Loader(
        people, 6, seed=2, position=loader.position, num_threads=num_threads, prefetch=prefetch
    )
    for one, other in zip(whole, before + take(rest, 7), strict=True):
        assert_same(one, other)


class Broken:
    """A hundred grey images, one of which is not as it should be."""

    num_classes = 12

    def __init__(self, number: int, sample: Sample, delay_s: float = 0.0) -> None:
        self.number = number
        self.sample = sample
        self.delay_s = delay_s
        self.num_read = 0

    def __len__(self) -> int:
        return 100

    def read(self, index: int) -> Sample:
        self.num_read += 1
        time.sleep(self.delay_s)
        good = Sample(np.full((112, 112, 3), index, np.uint8), index % 12)
        return self.sample if index == self.number else good

    def describe(self, index: int) -> str:
        return f"here record {index}"


PIXELS = np.zeros((112, 112, 3), np.uint8)


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (
            Sample(PIXELS, 17),
            "here record 42: label 17 but num_classes is 12: one is wrong",
        ),
        (Sample(PIXELS, 12), "here record 42: label 12 but num_classes is 12"),
        (Sample(PIXELS, -1), "here record 42: label -1 but num_classes is 12"),
        (Sample(PIXELS, 10**30), "here record 42: label 10{30} but num_classes is 12"),
        (
            Sample(b"hello", 3),
            "here record 42: not a readable image: .*; copy it again",
        ),
    ],
)
def test_a_bad_sample_is_named_when_its_batch_comes(sample: Sample, message: str) -> None:
    place = epoch(EpochOrder(100, seed=0), 0).index(42)
    with Loader(Broken(42, sample), 10, seed=0, num_threads=3) as loader:
        for _ in range(place // 10):
            next(loader)
        with pytest.raises(ValueError, match=message):
            next(loader)
        if place // 10 < 9:
            assert next(loader).position == (place // 10 + 1) * 10


def test_a_file_that_vanished_is_named(tmp_path: Path) -> None:
    (tmp_path / "bob").mkdir()
    (tmp_path / "bob" / "1.png").write_bytes(b"")
    faces = open_dataset(tmp_path)
    (tmp_path / "bob" / "1.png").unlink()
    with (
        Loader(faces, 1, seed=0) as loader,
        pytest.raises(UnreadableRecord, match=r"bob/1\.png: No such file or directory; copy"),
    ):
        next(loader)


class Damaged(Broken):
    """Some of a hundred grey images cannot be read, each in its own way."""

    def __init__(self, damage: dict[int, Exception | Sample]) -> None:
        super().__init__(-1, Sample(PIXELS, 0))
        self.damage = damage

    def read(self, index: int) -> Sample:
        fault = self.damage.get(index)
        if isinstance(fault, Exception):
            raise fault
        return fault or super().read(index)


DAMAGE: dict[int, Exception | Sample] = {
    7: ValueError("zeros"),
    8: OSError(5, "Input/output error"),
    40: Sample(b"hello", 3),
    60: Sample(PIXELS, 12),
    99: UnreadableRecord("here record 99", "cut", 99),
}
TAKEN = {7: 9, 8: 9, 40: 41, 60: 61, 99: 0}


@pytest.mark.parametrize(("num_threads", "world_size"), [(1, 1), (3, 2)])
def test_unreadable_records_are_passed_over_for_the_next_and_counted(
    num_threads: int, world_size: int, caplog: pytest.LogCaptureFixture
) -> None:
    loaders = [
        Loader(
            Damaged(DAMAGE),
            10,
            seed=0,
            rank=rank,
            world_size=world_size,
            num_threads=num_threads,
            on_error="skip",
        )
        for rank in range(world_size)
    ]
    ranks = [take(loader, 20) for loader in loaders]
    indices = np.concatenate([part.indices for parts in zip(*ranks, strict=True) for part in parts])
    order = EpochOrder(100, seed=0).indices(np.arange(200)).tolist()
    assert indices.tolist() == [TAKEN.get(index, index) for index in order]
    for batch in (part for parts in ranks for part in parts):
        np.testing.assert_array_equal(batch.images[:, 0, 0, 0], batch.indices)
        np.testing.assert_array_equal(batch.labels, batch.indices % 12)
    assert set().union(*(loader.skipped for loader in loaders)) == set(DAMAGE)
    assert "passed over here record 8: Input/output error" in caplog.text


def test_the_first_unreadable_records_are_logged_and_too_many_end_the_run(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    everything: dict[int, Exception | Sample] = {n: ValueError("zeros") for n in range(1, 100)}
    with Loader(Damaged(everything), 10, seed=0, on_error="skip") as loader:
        for _ in range(10):
            assert set(next(loader).indices.tolist()) == {0}
    assert loader.skipped == set(range(1, 100))
    assert caplog.text.count("passed over") == 10
    assert "more unreadable records are counted" in caplog.text
    everything[0] = ValueError("zeros")
    monkeypatch.setattr(Damaged, "__len__", lambda self: 200)
    everything |= {n: ValueError("zeros") for n in range(100, 200)}
    with (
        Loader(Damaged(everything), 10, seed=0, on_error="skip") as loader,
        pytest.raises(UnreadableRecord, match=r"zeros \(record 101 that is unreadable: too many"),
    ):
        next(loader)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("count", [1, 3, 100])
def test_a_small_set_without_a_readable_record_ends_the_run(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    everything: dict[int, Exception | Sample] = {n: ValueError("zeros") for n in range(count)}
    monkeypatch.setattr(Damaged, "__len__", lambda self: count)
    with (
        Loader(Damaged(everything), 10, seed=0, on_error="skip", num_threads=3) as loader,
        pytest.raises(UnreadableRecord, match="zeros"),
    ):
        next(loader)


def test_a_run_stops_at_an_unreadable_record_unless_told_otherwise() -> None:
    with Loader(Damaged(DAMAGE), 100, seed=0) as loader:
        with pytest.raises(UnreadableRecord) as caught:
            next(loader)
        assert caught.value.index in DAMAGE
        assert caught.value.where == f"here record {caught.value.index}"
    wrong: Any = "ignore"
    with pytest.raises(ValueError, match="on_error must be stop or skip, got 'ignore'"):
        Loader(Damaged(DAMAGE), 10, seed=0, on_error=wrong)


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_the_order_is_the_same_however_far_it_is_worked_out_at_once(
    monkeypatch: pytest.MonkeyPatch, rank: int
) -> None:
    monkeypatch.setattr(loading, "ORDER_AHEAD", 7)
    people, order = Synthetic(5, 23), EpochOrder(23, 9)
    slices = Loader(people, 8, seed=9, rank=rank, world_size=3, position=16)
    for batch, step in zip(take(slices, 9), range(2, 11), strict=True):
        places = np.arange(8 * step + 3 * rank, 8 * step + min(8, 3 * rank + 3))
        assert batch.indices.tolist() == order.indices(places).tolist()


def decoding_threads() -> int:
    return sum(thread.name.startswith("decode") for thread in threading.enumerate())


@pytest.mark.parametrize("sample", [Sample(PIXELS, 0), Sample(b"hello", 0)])
def test_a_closed_loader_leaves_no_thread(sample: Sample) -> None:
    people = Broken(42, sample)
    with Loader(people, 10, seed=0, num_threads=3) as loader:
        next(loader)
        assert decoding_threads() == 3
    assert decoding_threads() == 0
    loader.close()
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        next(loader)
    del loader
    forgotten = Loader(people, 10, seed=0)
    del forgotten
    deadline = time.monotonic() + 10
    while decoding_threads() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert decoding_threads() == 0


def test_batches_are_decoded_while_the_caller_works() -> None:
    slow = Broken(42, Sample(PIXELS, 0), delay_s=0.01)
    with Loader(slow, 10, seed=0, num_threads=1, prefetch=2) as loader:
        next(loader)
        waited_s = loader.wait_s
        deadline = time.monotonic() + 10
        while slow.num_read < 30 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert slow.num_read == 30  # two batches ahead, and no more
        next(loader)
        ready_s = loader.wait_s - waited_s
    assert waited_s > 0.09  # ten images at 10 ms
    assert ready_s < waited_s / 2


def test_numbers_out_of_range_are_refused() -> None:
    people = Synthetic(5, 5)
    for name, value in (("batch_size", 0), ("position", -1), ("num_threads", 0), ("prefetch", -1)):
        numbers: dict[str, Any] = {"batch_size": 4, "seed": 0, name: value}
        with pytest.raises(ValueError, match=f"{name} must be at least .*, got {value}"):
            Loader(people, **numbers)
    for rank in (-1, 2):
        with pytest.raises(ValueError, match=rf"rank must be in \[0, 2\), got {rank}"):
            Loader(people, 4, seed=0, rank=rank, world_size=2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_batches_are_pinned_for_a_cuda_device() -> None:
    (batch,) = take(Loader(Synthetic(5, 50), 8, seed=0, pin_memory=True), 1)
    assert batch.images.is_pinned()
    assert batch.labels.is_pinned()
