"""The training set of a run: opened on every rank, and the same set on all of them."""

from pathlib import Path

from facescale.config import DataConfig
from facescale.data.dataset import Dataset, open_dataset
from facescale.data.found import Found, found_in
from facescale.data.labels import labels_of
from facescale.data.order import BalancedOrder, EpochOrder, Order
from facescale.data.skip import WithoutSkipped, leave_out
from facescale.distributed import Group
from facescale.training.agreement import check_same


def open_training_set(data: DataConfig, world: Group) -> tuple[Dataset, Found]:
    """Open the data of a run and compare it over the ranks. A collective.

    Raises:
        FileNotFoundError, ValueError: A rank cannot open its data, or it is not that of the others;
            on every rank alike.
    """
    with world.all_or_none():
        dataset = _open(data)
        found = found_in(dataset)
    facts = {
        "number of classes in the data": f"{found.num_classes}",
        "number of images in the data": f"{found.num_images}",
        "digest of the people in the data": found.people,
        "order of the data": order_of(data, dataset),
    }
    check_same(world, facts)
    return dataset, found


def _open(data: DataConfig) -> Dataset:
    if data.path is None:
        raise ValueError(
            "no training data: pass --data.path with a folder that has train.rec, one folder a "
            "person, or another data set"
        )
    dataset = open_dataset(
        data.path,
        num_classes=data.num_classes,
        num_images=data.num_images,
        people=data.people,
    )
    return dataset if data.skip is None else leave_out(dataset, Path(data.skip))


def make_order(data: DataConfig, dataset: Dataset, seed: int) -> Order:
    """The order of the samples of a run: a function of the seed and the data."""
    if data.order == "balanced":
        return BalancedOrder(labels_of(dataset), seed)
    return EpochOrder(len(dataset), seed)


def order_of(data: DataConfig, dataset: Dataset) -> str:
    """What decides, beside the seed, which image a position of the stream is; for checkpoints."""
    if not isinstance(dataset, WithoutSkipped):
        return data.order
    return f"{data.order} without {len(dataset.skipped)} records {dataset.fingerprint()[:16]}"
