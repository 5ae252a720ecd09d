"""Several data sets as one: people are joined by their names, or kept apart."""

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from facescale.data.found import Found, digest, found_in, people_digest
from facescale.data.images import Sample
from facescale.data.labels import labels_of
from facescale.data.unreadable import UnreadableRecord

People = Literal["apart", "by_name"]


class Joined:
    """The images of several sets, one set after the other.

    Attributes:
        datasets: The sets.
        num_classes: Number of people of all sets.
        class_names: The people by label; None where they are apart.
    """

    def __init__(self, datasets: Sequence[Any], people: People = "apart") -> None:
        """Join sets.

        Args:
            datasets: At least one.
            people: "by_name": the same name is the same person, whose label is that of the first
                set that has it. "apart": the labels of each set follow those of the one before.

        Raises:
            ValueError: People are joined by name, and a set does not name them.
        """
        if not datasets:
            raise ValueError("give at least one data set to join")
        self.datasets = list(datasets)
        self._people = people
        self.class_names: list[str] | None = None
        self._stops = np.array(list(accumulate(map(len, datasets))), np.int64)
        names = [getattr(dataset, "class_names", None) for dataset in datasets]
        if people == "apart":
            firsts = [0, *accumulate(dataset.num_classes for dataset in datasets)]
            self.num_classes = firsts[-1]
            self._maps = [np.arange(first, stop) for first, stop in pairwise(firsts)]
            return
        for number, known in enumerate(names):
            if known is None:
                raise ValueError(
                    f"data set {number + 1} of {len(names)} does not name its people, so they "
                    "cannot be joined by name; put a names.txt beside it, with the name of each "
                    "class on a line, or take data.people: apart"
                )
        self._join_by_name(names)

    def _join_by_name(self, names: list[Any]) -> None:
        place: dict[str, int] = {}
        self._maps = [
            np.array([place.setdefault(name, len(place)) for name in known], np.int64)
            for known in names
        ]
        self.class_names = list(place)
        self.num_classes = len(place)

    def __len__(self) -> int:
        return int(self._stops[-1])

    def _place(self, index: int) -> tuple[int, int]:
        """The set of an image, and its index there."""
        number = int(np.searchsorted(self._stops, index, side="right"))
        return number, index - (int(self._stops[number - 1]) if number else 0)

    def read(self, index: int) -> Sample:
        """The image of its set, and its label among all people; errors as of the set."""
        number, place = self._place(index)
        try:
            encoded, label = self.datasets[number].read(place)
        except UnreadableRecord as error:
            raise UnreadableRecord(error.where, error.reason, index) from error
        labels = self._maps[number]
        if not 0 <= label < len(labels):
            reason = f"label {label} but num_classes is {len(labels)}: one is wrong"
            raise UnreadableRecord(self.describe(index), reason, index)
        return Sample(encoded, int(labels[label]))

    def describe(self, index: int) -> str:
        """As its set describes the image."""
        number, place = self._place(index)
        text: str = self.datasets[number].describe(place)
        return text

    def labels(self) -> NDArray[np.int64]:
        """The label of every image, (n,); -1 where it cannot be read."""
        every = []
        for dataset, new in zip(self.datasets, self._maps, strict=True):
            old = labels_of(dataset)
            every.append(np.where(old < 0, -1, new[old]))
        return np.concatenate(every)

    def found(self) -> Found:
        """The people by the names of all, or by the people of each set in their order."""
        each = [found_in(dataset) for dataset in self.datasets]
        empty = [found.num_empty for found in each]
        num_empty = sum(number or 0 for number in empty)
        if self._people == "by_name":
            people = people_digest(self.num_classes, None, self.class_names)
            # a person without images in one set may have some in another
            return Found(len(self), self.num_classes, None if num_empty else 0, people)
        people = digest([b"apart", *(found.people.encode() for found in each)])
        return Found(len(self), self.num_classes, None if None in empty else num_empty, people)


def shared_names(datasets: Sequence[Any]) -> int:
    """How many names occur in more than one of the sets; 0 where fewer than two name people."""
    seen: dict[str, int] = {}
    for number, dataset in enumerate(datasets):
        for name in getattr(dataset, "class_names", None) or []:
            first = seen.setdefault(name, number)
            if first not in (number, -1):
                seen[name] = -1
    return sum(number == -1 for number in seen.values())
