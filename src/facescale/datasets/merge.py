"""Puts data sets together as one, people by name or apart."""

from collections import Counter
from collections.abc import Sequence
from typing import Literal

import numpy as np

from facescale.data.dataset import Dataset
from facescale.datasets.names import names_of
from facescale.datasets.subset import Part, Subset, readable_labels

People = Literal["same", "apart"]


def merge(datasets: Sequence[Dataset], sources: Sequence[str], people: People) -> Subset:
    """All images of some data sets.

    Labels follow the sets: those of the first one stay as they are, people that only a later one
    has come behind.

    Args:
        datasets: Two or more.
        sources: Where they lie, for messages.
        people: "same": people of one name are one person. "apart": they are different people;
            the later one is named `NAME (2)`.

    Raises:
        ValueError: A set has no names and `people` is "same", or a label cannot be read.
    """
    every = [_names(*pair, people) for pair in zip(datasets, sources, strict=True)]
    known: dict[str, int] = {}
    parts = []
    for dataset, source, names in zip(datasets, sources, every, strict=True):
        new = np.empty(dataset.num_classes, np.int64)
        for label, name in enumerate(names):
            if people == "same":
                new[label] = known.setdefault(name, len(known))
            else:
                new[label] = len(known)
                known[_free(name, known)] = len(known)
        labels = readable_labels(dataset, source)
        parts.append(Part(dataset, np.arange(len(dataset)), new[labels]))
    named = any(names_of(dataset) is not None for dataset in datasets)
    return Subset(parts, len(known), list(known) if named else None)


def _names(dataset: Dataset, source: str, people: People) -> list[str]:
    """The people of a set; their labels, where nothing names them and that is not needed."""
    names = names_of(dataset)
    if names is None and people == "same":
        raise ValueError(
            f"{source} has no names.txt, so nobody knows who is in both sets; write one with a "
            "name for each class, or take all people for different ones with --people apart"
        )
    if names is not None and people == "same" and len(set(names)) < len(names):
        ((twice, _),) = Counter(names).most_common(1)
        raise ValueError(f"{source} names two people {twice[:60]!r}; give each a name of its own")
    return [str(label) for label in range(dataset.num_classes)] if names is None else names


def _free(name: str, known: dict[str, int]) -> str:
    """`name`, or `name (2)` and so on where that is taken."""
    number, free = 1, name
    while free in known:
        number += 1
        free = f"{name} ({number})"
    return free
