"""Writes some images of data sets as one new set, with names and old labels beside it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from facescale.data.dataset import Dataset
from facescale.data.images import Encoded
from facescale.data.labels import labels_of
from facescale.datasets.names import CLASSES, NAMES, write_lines
from facescale.datasets.recordio import write_recordio
from facescale.random import Permutation, key

Labels = NDArray[np.int64]
Chunk = list[tuple[Encoded, int]]
Watch = Callable[[Iterator[Chunk], int], Iterator[Chunk]]

_CHUNK = 256  # images


@dataclass(frozen=True)
class Part:
    """Images of one data set, and the label that each has in the new one."""

    dataset: Dataset
    indices: NDArray[np.int64]
    labels: Labels


def readable_labels(dataset: Dataset, source: str) -> Labels:
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


def numbered_anew(labels: Labels) -> tuple[Labels, Labels]:
    """Labels (n,) without gaps in the same order, and the old label of each new one (classes,)."""
    old, new = np.unique(labels, return_inverse=True)
    return new.astype(np.int64), old


def write_set(
    folder: Path,
    parts: Sequence[Part],
    num_classes: int,
    names: list[str] | None = None,
    old_labels: Labels | None = None,
    watch: Watch = lambda chunks, total: chunks,
) -> int:
    """Write RecordIO in InsightFace's layout, sorted by label; returns the number of images.

    Args:
        folder: Where; it may not hold a set.
        parts: The images, which keep their order within a label.
        num_classes: Of the new set.
        names: Of its people, by label.
        old_labels: Of its people in the set that they come from; -1 writes `new`.
        watch: Passes on chunks of the images, to show how far it is.

    Raises:
        FileExistsError: There is a set already.
        ValueError: Nothing to write, or an image cannot be read.
    """
    total = sum(len(part.indices) for part in parts)
    if total == 0:
        raise ValueError(f"nothing is left to write to {folder}")
    check_is_free(folder)
    chunks = watch(_chunks(parts), total)
    write_recordio(folder, (sample for chunk in chunks for sample in chunk), num_classes)
    if names is not None:
        write_lines(folder / NAMES, names)
    if old_labels is not None:
        lines = ["new" if label < 0 else str(label) for label in old_labels.tolist()]
        write_lines(folder / CLASSES, lines)
    return total


def check_is_free(folder: Path) -> None:
    """Raise FileExistsError where a folder holds a set already, which is better known at once."""
    if (folder / "train.rec").exists():
        raise FileExistsError(f"{folder} holds a data set already; give another folder")


def _chunks(parts: Sequence[Part]) -> Iterator[Chunk]:
    """The images in the order of the new labels."""
    which = np.repeat(np.arange(len(parts)), [len(part.indices) for part in parts])
    indices = np.concatenate([part.indices for part in parts])
    labels = np.concatenate([part.labels for part in parts])
    order = np.argsort(labels, kind="stable")
    for start in range(0, len(order), _CHUNK):
        chunk = order[start : start + _CHUNK]
        yield [
            (parts[source].dataset.read(index).encoded, label)
            for source, index, label in zip(
                which[chunk].tolist(), indices[chunk].tolist(), labels[chunk].tolist(), strict=True
            )
        ]


def shuffled(count: int, *seed: int) -> NDArray[np.int64]:
    """A permutation of range(count) by some whole numbers."""
    if count == 0:
        return np.zeros(0, np.int64)
    places: NDArray[np.int64] = Permutation(count, key(*seed))(torch.arange(count)).numpy()
    return places
