"""Compares the images of a data set with the centres of their people, by a model's embeddings.

The centre of a person is the sum of the unit embeddings of all images, scaled to length 1.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from facescale.files import naming

Floats = NDArray[np.float32]
Labels = NDArray[np.int64]

_BLOCK = 1024  # rows of a product of embeddings at a time


@dataclass(frozen=True)
class Likeness:
    """How like `other` something is: an index or a label each, and a cosine."""

    index: int
    other: int
    cosine: float


@dataclass
class Embedded:
    """Unit embeddings of the images of a data set, on disk, and the centres of its people.

    Attributes:
        rows: (n, dim) float16.
        labels: (n,).
        sums: (num_classes, dim) of the rows of each person.
    """

    rows: NDArray[np.float16]
    labels: Labels
    sums: Floats

    @property
    def centres(self) -> Floats:
        """(num_classes, dim) of length 1; zeros for people without images."""
        return unit(self.sums)


def unit(rows: Floats) -> Floats:
    """Rows of length 1; rows of zeros stay."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    lengths[lengths == 0] = 1
    scaled: Floats = (rows / lengths).astype(np.float32)
    return scaled


def keep_embeddings(
    batches: Iterable[Tensor], labels: Labels, num_classes: int, folder: Path
) -> Embedded:
    """Write embeddings to a file without a name, which goes with the process.

    Args:
        batches: (b, dim) each, of all images in their order.
        labels: (n,) of all images.
        num_classes: Of the data set.
        folder: On a disk with room for 2 bytes a number.

    Raises:
        ValueError: An embedding is not finite: the model is damaged.
        OSError: The disk is full.
    """
    start, sums = 0, np.zeros((num_classes, 0), np.float32)
    with TemporaryFile(dir=folder) as file:
        for batch in batches:
            block = unit(batch.cpu().numpy().astype(np.float32))
            if not np.isfinite(block).all():
                raise ValueError("the model gives embeddings that are not finite numbers")
            if start == 0:
                sums = np.zeros((num_classes, block.shape[1]), np.float32)
            with naming(folder):  # not through a map, where a full disk ends the process (SIGBUS)
                file.write(block.astype(np.float16).tobytes())
            np.add.at(sums, labels[start : start + len(block)], block)
            start += len(block)
        if start != len(labels):
            raise ValueError(f"{start} embeddings for {len(labels)} images")
        with naming(folder):
            file.flush()
        rows = np.memmap(file, np.float16, "r", shape=(start, sums.shape[1]))
    return Embedded(rows, labels, sums)


def alike(centres: Floats, others: Floats, least: float) -> Iterator[Likeness]:
    """Centres with a cosine of `least` or more to one of `others`, and the one that is nearest."""
    for start in range(0, len(centres), _BLOCK):
        cosines = centres[start : start + _BLOCK] @ others.T
        nearest = cosines.argmax(axis=1)
        best = cosines[np.arange(len(cosines)), nearest]
        for row in np.flatnonzero(best >= least).tolist():
            yield Likeness(start + row, int(nearest[row]), float(best[row]))


def outliers(embedded: Embedded, least: float) -> list[Likeness]:
    """Images with a cosine below `least` to the centre of their person's other images.

    `other` is the label of the centre that is nearest, the person's own included; people with one
    image are not judged.

    Returns:
        The farthest first; the cosine is that to the person's other images.
    """
    indices, cosines = [], []
    counts = np.bincount(embedded.labels, minlength=len(embedded.sums))
    for start in range(0, len(embedded.labels), _BLOCK):
        labels = embedded.labels[start : start + _BLOCK]
        rows = embedded.rows[start : start + _BLOCK].astype(np.float32)
        every = (rows * unit(embedded.sums[labels] - rows)).sum(axis=1)
        far = np.flatnonzero((every < least) & (counts[labels] > 1))
        indices.append(start + far)
        cosines.append(every[far])
    index, cosine = np.concatenate(indices), np.concatenate(cosines)
    order = cosine.argsort(kind="stable")
    index, cosine, centres, nearest = index[order], cosine[order], embedded.centres, []
    for start in range(0, len(index), _BLOCK):
        rows = embedded.rows[index[start : start + _BLOCK]].astype(np.float32)
        nearest += (rows @ centres.T).argmax(axis=1).tolist()
    return [Likeness(*row) for row in zip(index.tolist(), nearest, cosine.tolist(), strict=True)]


def near_duplicates(embedded: Embedded, least: float) -> list[Likeness]:
    """Images with a cosine of `least` or more to an earlier one of the same person; `other` is it.

    Returns:
        In the order of people and images.
    """
    found = []
    order = np.argsort(embedded.labels, kind="stable")
    starts = np.flatnonzero(np.diff(embedded.labels[order], prepend=-1))
    for mine in np.split(order, starts[1:]):
        rows = embedded.rows[mine].astype(np.float32)
        for start in range(0, len(mine), _BLOCK):
            block = rows[start : start + _BLOCK] @ rows[: start + _BLOCK].T
            earlier = np.arange(block.shape[1]) < start + np.arange(len(block))[:, None]
            block[~earlier] = -2
            nearest = block.argmax(axis=1)
            best = block[np.arange(len(block)), nearest]
            for row in np.flatnonzero(best >= least).tolist():
                pair = (int(mine[start + row]), int(mine[nearest[row]]))
                found.append(Likeness(*pair, float(best[row])))
    return found
