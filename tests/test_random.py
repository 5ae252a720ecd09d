"""One hash for all random numbers: its quality, and the same numbers everywhere."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from facescale.random import MASK, Key, Permutation, derive_seed, key

COUNT = 1 << 18


def chi_square(values: Tensor, bins: int) -> float:
    """Of whole numbers that should be uniform over range(bins), as a normal deviate."""
    counts = torch.bincount(values, minlength=bins).double()
    expected = len(values) / bins
    statistic = ((counts - expected) ** 2 / expected).sum().item()
    return (statistic - (bins - 1)) / math.sqrt(2 * (bins - 1))


def sequences() -> list[Tensor]:
    """Bits along the counters of some keys, and along the keys of one counter."""
    counters = torch.arange(COUNT)
    return [key(seed).bits(counters) for seed in range(4)] + [
        key(seed).child(counters).bits(5) for seed in range(4)
    ]


def test_numbers_never_change() -> None:
    # Any change makes runs that were saved go on differently.
    assert key(0) == (0x156261B6, 0xED0E0FA5)
    bits = [key(7, 1 << 40).bits(counter) for counter in (0, 1, MASK)]
    assert bits == [0x5B7A04C6, 0x68AEA88D, 0xAD2F4D1]


def test_integers_and_tensors_give_the_same_bits() -> None:
    words = [0, 1, 5, 2**31, MASK, 2**32, 2**62 + 3]
    together = key(9).child(torch.tensor(words))
    for place, word in enumerate(words):
        alone = key(9).child(word)
        assert alone == (int(together.low[place]), int(together.high[place]))
        assert Key(*alone).bits(MASK) == int(together.bits(MASK)[place])


def test_bits_are_uniform_one_by_one_and_in_neighbouring_pairs() -> None:
    for bits in sequences():
        for shift in (0, 8, 16, 24):
            byte = bits >> shift & 255
            assert abs(chi_square(byte, 256)) < 4.5
            assert abs(chi_square((byte[:-1] >> 3) * 32 + (byte[1:] >> 3), 1024)) < 4.5


def test_numbers_of_neighbouring_counters_and_keys_are_not_correlated() -> None:
    for bits in sequences():
        numbers = bits.double() / 2**32 - 0.5
        assert abs(numbers.mean().item()) * math.sqrt(12 * COUNT) < 4.5
        assert abs(numbers.square().mean().item() - 1 / 12) * math.sqrt(180 * COUNT) < 4.5
        for lag in (1, 2, 3, 4, 8, 16, 64, 256, 512, 1024):
            product = (numbers[:-lag] * numbers[lag:]).mean().item()
            assert abs(product) * 12 * math.sqrt(COUNT) < 4.5


def test_a_bit_of_a_word_flips_half_of_the_key() -> None:
    words = torch.arange(20_000)
    for flip in (0, 1, 7, 31, 32, 50):
        one, other = key(3).child(words), key(3).child(words ^ (1 << flip))
        for half, changed in zip(one, other, strict=True):
            for bit in range(32):
                flipped = ((half ^ changed) >> bit & 1).double().mean().item()
                assert flipped == pytest.approx(0.5, abs=0.025)  # seven deviations


def test_counters_and_words_are_mapped_one_to_one() -> None:
    counters = torch.arange(COUNT)
    assert len(key(1).bits(counters).unique()) == COUNT
    low, high = key(1).child(counters)
    assert len((high << 31 ^ low).unique()) == COUNT


def test_the_order_and_the_number_of_words_matter() -> None:
    seeds = [derive_seed(*words) for words in [(1, 2), (2, 1), (1,), (1, 0), (), (1, 2**32)]]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_uniform_numbers_fill_the_unit_interval() -> None:
    numbers = key(5).uniform(torch.arange(100_000))
    assert numbers.dtype == torch.float32
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert abs(chi_square((numbers * 20).long(), 20)) < 4.5


def test_normal_numbers_have_the_moments_and_tails_of_the_normal_distribution() -> None:
    numbers = key(5).child(torch.arange(2000)[:, None]).normal(129).double()
    count = numbers.numel()
    assert abs(numbers.mean().item()) * math.sqrt(count) < 4.5
    assert numbers.var().item() == pytest.approx(1, abs=4.5 * math.sqrt(2 / count))
    assert numbers.pow(4).mean().item() == pytest.approx(3, abs=4.5 * math.sqrt(96 / count))
    for limit in (1.0, 2.0, 3.0):
        chance = math.erfc(limit / math.sqrt(2))
        beyond = (numbers.abs() > limit).double().mean().item()
        assert beyond == pytest.approx(chance, abs=4.5 * math.sqrt(chance / count))
    correlation = np.corrcoef(numbers.T.numpy()) - np.eye(129)
    assert np.abs(correlation).max() < 5.5 / math.sqrt(2000)  # of 8,256 pairs


@pytest.mark.parametrize("size", [1, 2, 3, 5, 10, 99, 100, 101, 1000, 65_537])
def test_a_permutation_has_every_place_once_and_an_inverse(size: int) -> None:
    places = torch.arange(size)
    for seed in range(3):
        permutation = Permutation(size, key(seed))
        there = permutation(places)
        assert torch.equal(there.sort().values, places)
        assert torch.equal(permutation.inverse(there), places)


def test_a_fixed_number_of_walks_brings_every_place_inside() -> None:
    """What a device does that is not to be asked whether all are inside."""
    for size in (2, 3, 5, 7, 101, 150, 1000):
        for seed in range(50):
            permutation = Permutation(size, Key(*key(seed)))
            place = torch.arange(size)
            permuted = permutation._forward(place)
            for _ in range(permutation.walks - 1):
                again = permutation._forward(permuted)
                permuted = torch.where(permuted >= size, again, permuted)
            assert torch.equal(permuted, permutation(place))
            assert permuted.max() < size


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_gives_the_numbers_of_the_cpu() -> None:
    words = torch.arange(10_000) * 2**20
    on_cpu, on_cuda = key(3).child(words), key(3).child(words.to("cuda"))
    assert torch.equal(on_cuda.low.cpu(), on_cpu.low)
    assert torch.equal(on_cuda.bits(7).cpu(), on_cpu.bits(7))
    places = torch.arange(5000)
    permutation = Permutation(360_232, key(3))
    assert torch.equal(permutation(places.to("cuda")).cpu(), permutation(places))
    assert torch.equal(permutation.inverse(places.to("cuda")).cpu(), permutation.inverse(places))
