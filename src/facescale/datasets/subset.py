"""Some images of one or more data sets under new labels: a data set that can be written."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from facescale.data.dataset import Dataset
from facescale.data.found import Found, digest, found_in
from facescale.data.images import Sample
from facescale.data.labels import labels_of
from facescale.datasets.convert import Conversion, Options
from facescale.datasets.names import CLASSES
from facescale.evaluation.streaming import unwatched
from facescale.files import write_whole
from facescale.random import Permutation, key

Labels = NDArray[np.int64]
Watch = Callable[[Iterator[range], int], Iterator[range]]


@dataclass(frozen=True)
class Part:
    """Images of one data set, and the label that each has in the new one; both (k,)."""

    dataset: Dataset
    indices: NDArray[np.int64]
    labels: Labels


class Subset:
    """Images of some data sets, sorted by their new labels.

    Attributes:
        num_classes: Of the new set.
        class_names: Of its people, by label; None where nothing names them.
        old_labels: Of its people in the set they come from; None where they come from several, or
            labels stay.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        num_classes: int,
        class_names: list[str] | None = None,
        old_labels: Labels | None = None,
    ) -> None:
        """Sort the images by label; within a label they keep their order."""
        self.num_classes, self.class_names, self.old_labels = num_classes, class_names, old_labels
        self._datasets = [part.dataset for part in parts]
        which = np.repeat(np.arange(len(parts), dtype=np.int16), [len(p.indices) for p in parts])
        labels = np.concatenate([part.labels for part in parts])
        order = np.argsort(labels, kind="stable")
        self._which, self._labels = which[order], labels[order]
        self._indices = np.concatenate([part.indices for part in parts])[order]

    def __len__(self) -> int:
        return len(self._indices)

    def read(self, index: int) -> Sample:
        """An image, and its new label; errors as of the data set that it comes from."""
        encoded = self._dataset(index).read(int(self._indices[index])).encoded
        return Sample(encoded, int(self._labels[index]))

    def labels(self) -> Labels:
        """The new label of every image."""
        return self._labels

    def describe(self, index: int) -> str:
        """Where an image comes from."""
        return self._dataset(index).describe(int(self._indices[index]))

    def found(self) -> Found:
        """The digest is of where every image comes from, and of its label."""
        counts = np.bincount(self._labels, minlength=self.num_classes)
        sources = [found_in(dataset).people.encode() for dataset in self._datasets]
        people = digest([*sources, self._which, self._indices, self._labels])
        return Found(len(self), self.num_classes, int((counts == 0).sum()), people)

    def _dataset(self, index: int) -> Dataset:
        return self._datasets[int(self._which[index])]


def kept(
    dataset: Dataset,
    mask: NDArray[np.bool_],
    labels: Labels,
    names: list[str] | None,
    renumber: bool = True,
) -> Subset:
    """The images of `mask` (n,), with labels (n,) that are closed up where `renumber` is True."""
    indices = np.flatnonzero(mask)
    chosen = labels[indices]
    if not renumber:
        return Subset([Part(dataset, indices, chosen)], dataset.num_classes, names)
    old, new = np.unique(chosen, return_inverse=True)
    left = None if names is None else [names[label] for label in old.tolist()]
    return Subset([Part(dataset, indices, new.astype(np.int64))], len(old), left, old)


def readable_labels(dataset: Dataset, source: str | Path) -> Labels:
    """The label of every image; ValueError if there is one that cannot be read."""
    labels = labels_of(dataset)
    bad = np.flatnonzero(labels < 0)
    if len(bad):
        raise ValueError(
            f"{source}: {len(bad)} records have no readable label, such as "
            f"{dataset.describe(int(bad[0]))}; write a clean copy first with "
            "`facescale data check --repair`"
        )
    return labels


def write_subset(subset: Subset, out: Path, num_threads: int, watch: Watch = unwatched) -> None:
    """Write RecordIO in InsightFace's layout, and read it again; goes on where it was killed.

    Beside it are `names.txt`, where names are known, and `classes.txt` with the old labels.

    Raises:
        FileExistsError: There is a set already.
        ValueError: Nothing to write, or an image cannot be read.
        OSError: It cannot be written.
    """
    if not len(subset):
        raise ValueError(f"nothing is left to write to {out}")
    work = Conversion(subset, out, Options(threads=num_threads, labels="exact"))
    try:
        for _ in watch(work.write(), work.remaining):
            pass
        if subset.old_labels is not None:
            labels = subset.old_labels.tolist()
            write_whole(work.folder / CLASSES, [b"%d\n" % label for label in labels])
        for _ in watch(work.verify(), len(subset)):
            pass
    finally:
        work.close()


def check_is_free(out: Path) -> None:
    """Raise FileExistsError where a folder is not free, which is better known at once."""
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise FileExistsError(f"{out} exists already; choose another folder, or remove it")


def shuffled(count: int, *seed: int) -> NDArray[np.int64]:
    """A permutation of range(count) by some whole numbers."""
    if count == 0:
        return np.zeros(0, np.int64)
    places: NDArray[np.int64] = Permutation(count, key(*seed))(torch.arange(count)).numpy()
    return places
