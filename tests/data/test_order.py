"""The balanced order: every identity equally often, a function of the position alone."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from facescale.data.folder import ImageFolder
from facescale.data.labels import labels_of
from facescale.data.loader import Loader
from facescale.data.order import BalancedOrder
from facescale.data.recordio import RecordIO
from facescale.data.synthetic import Synthetic
from records import im2rec_layout
from runs import write_people


def test_every_round_has_each_identity_once_and_each_image_comes_equally_often() -> None:
    counts = [1, 2, 3, 0, 5, 17]
    labels = np.repeat(np.arange(6), counts)
    labels = np.random.default_rng(0).permutation(labels)
    order = BalancedOrder(labels, seed=4)
    assert order.num_classes == 5  # one has no images
    rounds = np.lcm.reduce([1, 2, 3, 5, 17])
    indices = order.indices(np.arange(5 * rounds)).reshape(rounds, 5)
    assert (np.sort(labels[indices], axis=1) == [0, 1, 2, 4, 5]).all()
    assert len({tuple(row) for row in labels[indices[:100]].tolist()}) > 50  # of 120 orders
    shown = np.bincount(indices.ravel(), minlength=len(labels))
    assert (shown == rounds // np.array(counts)[labels]).all()
    laps = indices.ravel()[labels[indices.ravel()] == 5].reshape(-1, 17)
    assert (np.sort(laps, axis=1) == np.flatnonzero(labels == 5)).all()  # a permutation each
    assert len({tuple(lap) for lap in laps.tolist()}) == len(laps)


@settings(deadline=None)
@given(
    counts=st.lists(st.integers(0, 5000), min_size=1, max_size=8).filter(any),
    seed=st.integers(0, 2**63 - 1),
    positions=st.lists(st.integers(0, 10**12), min_size=1, max_size=20),
)
def test_a_position_needs_no_other(counts: list[int], seed: int, positions: list[int]) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    order = BalancedOrder(labels, seed)
    together = order.indices(np.array(positions))
    alone = [int(order.indices(np.array([position]))[0]) for position in positions]
    assert together.tolist() == alone
    assert all(0 <= index < len(labels) for index in alone)


def test_images_without_a_label_are_left_out() -> None:
    order = BalancedOrder(np.array([-1, 0, -1, 1]), seed=0)
    assert set(order.indices(np.arange(40)).tolist()) == {1, 3}
    with pytest.raises(ValueError, match="no image has a label"):
        BalancedOrder(np.array([-1, -1]), seed=0)


def test_all_ranks_together_show_the_same_samples_as_one() -> None:
    faces = Synthetic(num_classes=7, num_images=50)
    order = BalancedOrder(labels_of(faces), seed=1)
    want = order.indices(np.arange(24))
    for size in (1, 3):
        loaders = [
            Loader(faces, 12, seed=9, rank=rank, world_size=size, order=order)
            for rank in range(size)
        ]
        steps = [[next(loader).indices for loader in loaders] for _ in range(2)]
        assert np.concatenate([part for step in steps for part in step]).tolist() == want.tolist()
        for loader in loaders:
            loader.close()


def test_labels_are_read_without_decoding(tmp_path: Path) -> None:
    people = write_people(tmp_path / "people", {"a": 2, "b": 1})
    assert labels_of(ImageFolder(people)).tolist() == [0, 0, 1]
    records = RecordIO(im2rec_layout(tmp_path, [0, 2, 1.5, 1, -3]))
    assert records.num_classes == 3
    assert labels_of(records).tolist() == [0, 2, -1, 1, -1]
    plain = Synthetic(3, 20)
    assert labels_of(plain).tolist() == [plain.read(index).label for index in range(20)]
