"""Takes people and images out of a training set: too few images, of a test set, or not alike."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from facescale.data.dataset import Dataset, open_dataset
from facescale.data.images import Sample
from facescale.data.pairs import PairSet, load_pairs
from facescale.datasets.likeness import (
    Embedded,
    Likeness,
    alike,
    keep_embeddings,
    near_duplicates,
    outliers,
)
from facescale.datasets.names import names_of, read_names
from facescale.datasets.subset import Labels, Subset, kept, readable_labels
from facescale.evaluation.faces import Faces
from facescale.evaluation.streaming import Watch, embed_stream, unwatched


@dataclass
class Cleaning:
    """What is taken out of a data set, and why.

    Attributes:
        dataset: The set.
        labels: (n,) of its images.
        by_name: Labels of people who have the name of one in a test set.
        by_centre: People whose centre is like one of a test set.
        others: What `other` of `by_centre` is: a name for each row of the test set.
        outliers: Images that are far from the other images of their person.
        near: Images that are nearly the same as an earlier one of their person.
        drop: Which of "outliers" and "near" are taken out, and not only reported.
        min_images: People with fewer images, after all else, are taken out.
    """

    dataset: Dataset
    labels: Labels
    by_name: list[int] = field(default_factory=list)
    by_centre: list[Likeness] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    outliers: list[Likeness] = field(default_factory=list)
    near: list[Likeness] = field(default_factory=list)
    drop: frozenset[str] = frozenset()
    min_images: int = 1

    def kept(self) -> NDArray[np.bool_]:
        """Which images stay; (n,)."""
        people = [*self.by_name, *(one.index for one in self.by_centre)]
        stays = ~np.isin(self.labels, np.array(people, np.int64))
        if "outliers" in self.drop:
            stays[[one.index for one in self.outliers]] = False
        if "near" in self.drop:
            stays[[one.index for one in self.near]] = False
        counts = np.bincount(self.labels[stays], minlength=self.dataset.num_classes)
        return stays & (counts[self.labels] >= self.min_images)

    def few(self) -> int:
        """How many people are taken out for too few images, those of whom none is left included."""
        people = {*self.by_name, *(one.index for one in self.by_centre)}
        before, left = set(np.unique(self.labels).tolist()), set(self.people_left())
        return len(before - left - people)

    def people_left(self) -> list[int]:
        """Labels of the people who stay."""
        left: list[int] = np.unique(self.labels[self.kept()]).tolist()
        return left

    def subset(self) -> Subset:
        """What stays, numbered without gaps."""
        return kept(self.dataset, self.kept(), self.labels, names_of(self.dataset))

    def as_values(self) -> dict[str, Any]:
        """Plain values for programs."""
        names = names_of(self.dataset)

        def name(label: int) -> str:
            return str(label) if names is None else names[label]

        return {
            "images": len(self.labels),
            "people": len(np.unique(self.labels)),
            "images_left": int(self.kept().sum()),
            "people_left": len(self.people_left()),
            "people_with_few_images": self.few(),
            "dropped": sorted(self.drop),
            "by_name": [name(label) for label in self.by_name],
            "by_centre": [
                {"person": name(one.index), "like": self.others[one.other], "cosine": one.cosine}
                for one in self.by_centre
            ],
            "outliers": [
                {
                    "where": self.dataset.describe(one.index),
                    "person": name(int(self.labels[one.index])),
                    "cosine": one.cosine,
                    "nearest": name(one.other),
                }
                for one in self.outliers
            ],
            "near": [
                {
                    "where": self.dataset.describe(one.index),
                    "like": self.dataset.describe(one.other),
                    "cosine": one.cosine,
                }
                for one in self.near
            ],
        }


def same_names(dataset: Dataset, source: str | Path, others: Iterable[str]) -> list[int]:
    """Labels of the people whose name is among `others`; ValueError if nobody has a name."""
    names = names_of(dataset)
    if names is None:
        raise ValueError(
            f"{source} has no names.txt, so people are not found by name; write one with a name "
            "for each class, or give --model to compare faces"
        )
    known = set(others)
    return [label for label, name in enumerate(names) if name in known]


def people_named_in(dataset: Dataset, source: str | Path, tests: Sequence[str]) -> list[int]:
    """Labels of the people of `dataset` whose name is one of the people of test sets.

    Args:
        dataset: The training set.
        source: Where it lies, for messages.
        tests: Data sets with names, or text files with a name a line.

    Raises:
        FileNotFoundError, ValueError: A test set is missing, or nothing names its people.
    """
    others: set[str] = set()
    for test in tests:
        if Path(test).is_file() and Path(test).suffix == ".txt":
            others.update(read_names(Path(test)))
            continue
        if Path(test).suffix == ".bin":
            raise ValueError(f"{test} has no names; give --model and --similarity to compare faces")
        names = names_of(open_dataset(test))
        if names is None:
            raise ValueError(
                f"{test} has no names.txt; write one with a name for each class, or give --model "
                "and --similarity to compare faces"
            )
        others.update(names)
    return same_names(dataset, source, others)


def embed(
    network: nn.Module,
    dataset: Dataset,
    labels: Labels,
    folder: Path,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
    flip: bool = True,
    watch: Watch = unwatched,
) -> Embedded:
    """Embed all images of a data set, with their numbers kept in a file in `folder`.

    Arguments as of `embed_stream` and `keep_embeddings`; `folder` is made if need be.
    """
    folder.mkdir(parents=True, exist_ok=True)
    faces = Faces(dataset, stretch=True)
    batches = embed_stream(network, faces.decode_range, 0, len(dataset), batch_size, device, flip)
    return keep_embeddings(watch(batches, len(dataset)), labels, dataset.num_classes, folder)


def compare_(
    cleaning: Cleaning,
    embedding: Callable[[Dataset, Labels], Embedded],
    tests: Sequence[str],
    similarity: float | None,
    outlier: float | None,
    near: float | None,
) -> None:
    """Fill in what the embeddings say.

    Args:
        cleaning: Of the training set.
        embedding: Embeds a data set with its labels.
        tests: Data sets, or `.bin` sets, every image of which is taken as a person.
        similarity: Cosine from which on a person is one of a test set.
        outlier: Cosine below which an image is far from the others of its person.
        near: Cosine from which on two images of a person are nearly the same.
    """
    embedded = embedding(cleaning.dataset, cleaning.labels)
    if similarity is not None:
        centres = embedded.centres
        for test in tests:
            people, names = _open_test(test)
            others = embedding(people, readable_labels(people, test)).centres
            first = len(cleaning.others)
            cleaning.others += names
            known = {one.index for one in cleaning.by_centre}
            cleaning.by_centre += [
                replace(one, other=first + one.other)
                for one in alike(centres, others, similarity)
                if one.index not in known
            ]
    if outlier is not None:
        cleaning.outliers = outliers(embedded, outlier)
    if near is not None:
        cleaning.near = near_duplicates(embedded, near)


class _Images:
    """The different images of a set of pairs, each as a person."""

    def __init__(self, pairs: PairSet) -> None:
        self._pairs, self._places = pairs, pairs.distinct()[0]
        self.num_classes = len(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def read(self, index: int) -> Sample:
        return Sample(self._pairs.images[self._places[index]], index)

    def labels(self) -> Labels:
        return np.arange(len(self))

    def describe(self, index: int) -> str:
        return f"{self._pairs.name} image {self._places[index]}"


def _open_test(source: str) -> tuple[Dataset, list[str]]:
    """A test set, and a name for each of its people."""
    if Path(source).suffix == ".bin":
        images = _Images(load_pairs(source))
        return images, [images.describe(index) for index in range(len(images))]
    dataset = open_dataset(source)
    names = names_of(dataset) or [str(label) for label in range(dataset.num_classes)]
    return dataset, [f"{source} {name}" for name in names]
