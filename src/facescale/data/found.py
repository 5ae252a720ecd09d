"""What opening a data set found: how many people and images, and a digest of who they are."""

import hashlib
import logging
import os
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

_log = logging.getLogger(__name__)


class Found(NamedTuple):
    """The size of a data set, and who is in it.

    Attributes:
        num_images: Number of images.
        num_classes: Number of people.
        num_empty: Classes without an image; None where counting them would take long.
        people: Hexadecimal digest of the people in the order of their labels. Two sets with the
            same digest give the same label to the same person, as far as the files tell: by the
            people's names, else by the number of images of each one, else by where records lie.
    """

    num_images: int
    num_classes: int
    num_empty: int | None
    people: str

    def __str__(self) -> str:
        people = "1 person" if self.num_classes == 1 else f"{self.num_classes:,} people"
        text = f"{self.num_images:,} images of {people}"
        return f"{text}, {self.num_empty:,} of them without images" if self.num_empty else text

    def warnings(self) -> list[str]:
        """What makes training meaningless or wasteful, with the remedy; one line each."""
        told = []
        if self.num_classes < 2:
            told.append("one person only: the loss says nothing; add images of other people")
        elif self.num_images < 2 or self.num_empty == self.num_classes - 1:
            told.append("images of one person only: the loss says nothing; add images of others")
        if self.num_empty:
            told.append(
                f"{self.num_empty:,} of {self.num_classes:,} classes have no images, and a centre "
                "each; number the people anew without gaps"
            )
        return told


def found_in(dataset: Any) -> Found:
    """What `dataset.found()` says; of a data set without that method, the sizes alone."""
    if hasattr(dataset, "found"):
        found: Found = dataset.found()
        return found
    num_classes = dataset.num_classes
    return Found(len(dataset), num_classes, None, digest([b"%d classes" % num_classes]))


def found_by_labels(
    labels: NDArray[np.integer[Any]], num_classes: int, names: Sequence[str] | None
) -> Found:
    """Of a set whose labels (n,) are known; those out of [0, `num_classes`) do not count."""
    known = labels[(labels >= 0) & (labels < num_classes)]
    warn_beyond(int((labels >= num_classes).sum()), num_classes)
    counts = np.bincount(known, minlength=num_classes)
    num_empty = num_classes - int(np.count_nonzero(counts))
    return Found(len(labels), num_classes, num_empty, people_digest(num_classes, counts, names))


def warn_beyond(count: int, num_classes: int) -> None:
    """Say that `count` images have a label that is no class, at which a run would stop."""
    if count:
        _log.warning(
            "%d images have labels beyond the %d classes that property states; correct it, or "
            "delete it to have the classes counted",
            count,
            num_classes,
        )


def people_digest(
    num_classes: int, counts: NDArray[np.int64] | None, names: Sequence[str] | None
) -> str:
    """Of the names of the people, or else of the number of images of each one, by label."""
    if names is not None:
        return digest(map(os.fsencode, names))
    return digest([b"%d" % num_classes, np.ascontiguousarray(counts, np.int64)])


def digest(parts: Iterable[Any]) -> str:
    """Of the lengths and contents of some buffers, in their order."""
    sha = hashlib.blake2b(digest_size=16)
    for part in parts:
        view = memoryview(part).cast("B")
        sha.update(b"%d:" % len(view))
        sha.update(view)
    return sha.hexdigest()
