import numpy as np
import pytest

from facescale.data.dataset import open_dataset
from facescale.data.synthetic import Synthetic


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
