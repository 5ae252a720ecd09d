import numpy as np
import pytest

from facescale.data.dataset import open_dataset
from facescale.data.synthetic import Synthetic
from facescale.random import hash64, uniform


def test_an_image_is_a_function_of_seed_and_index() -> None:
    first, again, other = Synthetic(1000, 500), Synthetic(1000, 500), Synthetic(1000, 500, seed=1)
    for index in (0, 7, 499):
        assert first.read(index).label == again.read(index).label
        np.testing.assert_array_equal(first.read(index).encoded, again.read(index).encoded)
    assert [first.read(i).label for i in range(9)] != [other.read(i).label for i in range(9)]
    assert np.asarray(first.read(0).encoded).shape == (112, 112, 3)


def test_labels_spread_over_all_identities() -> None:
    people = Synthetic(num_classes=50, num_images=5000)
    counts = np.bincount([people.read(index).label for index in range(len(people))], minlength=50)
    # 100 expected each: chi-square with 49 degrees of freedom is below 85.4 in 999 of 1,000 cases
    assert ((counts - 100) ** 2 / 100).sum() < 85.4


def test_any_number_of_identities_and_images_costs_the_same() -> None:
    everybody = open_dataset("synthetic", num_classes=10**9, num_images=10**12)
    assert (everybody.num_classes, len(everybody)) == (10**9, 10**12)
    assert 0 <= everybody.read(10**12 - 1).label < 10**9
    assert everybody.describe(10**12 - 1) == "synthetic image 999999999999"


def test_a_size_is_needed() -> None:
    with pytest.raises(ValueError, match="needs num_classes and num_images"):
        open_dataset("synthetic", num_classes=5)
    for sizes in ((0, 5), (5, 0)):
        with pytest.raises(ValueError, match="must be at least 1, got 0"):
            Synthetic(*sizes)


def test_hashes_of_neighbouring_keys_differ_in_half_of_the_bits() -> None:
    counter = np.arange(10_000)
    for one, other in (
        (hash64(3, counter), hash64(3, counter + 1)),
        (hash64(3, counter), hash64(4, counter)),
        (hash64(3, counter), hash64(counter, 3)),
    ):
        flips = np.unpackbits((one ^ other).view(np.uint8).reshape(-1, 8), axis=1).mean(axis=0)
        assert np.abs(flips - 0.5).max() < 0.025  # five standard deviations of 10,000 coins


def test_uniform_numbers_fill_the_unit_interval() -> None:
    numbers = uniform(5, np.arange(100_000))
    counts = np.bincount((numbers * 20).astype(int), minlength=20)
    assert numbers.dtype == np.float32
    assert len(counts) == 20
    assert ((counts - 5000) ** 2 / 5000).sum() < 43.8  # chi-square, 19 degrees of freedom, 0.1 %


def test_a_key_of_arrays_broadcasts() -> None:
    table = hash64(1, np.arange(3)[:, None], np.arange(4))
    assert table.shape == (3, 4)
    assert table[2, 3] == hash64(1, 2, 3)[0]
