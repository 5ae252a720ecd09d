"""Holds out people, or some images of each, as a second data set."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from facescale.data.dataset import Dataset
from facescale.datasets.names import names_of
from facescale.datasets.subset import Labels, Part, Subset, kept, shuffled

_PEOPLE, _IMAGES = range(2)  # keys of the random numbers


@dataclass(frozen=True)
class Holdout:
    """What is held out.

    Attributes:
        people: Labels of the people whose images are all held out.
        images: Of every other person: so many images are held out too, one is left at least.
        seed: Which images.
    """

    people: tuple[int, ...] = ()
    images: int = 0
    seed: int = 0


def draw_people(labels: Labels, count: int, seed: int) -> tuple[int, ...]:
    """Labels of `count` random people with images, sorted; a function of the seed.

    Raises:
        ValueError: There are not so many, or nobody would be left.
    """
    people = np.unique(labels)
    if not 0 < count < len(people):
        raise ValueError(
            f"{count} people cannot be held out of {len(people)} with images: at least one is "
            "held out, and one is left"
        )
    chosen: list[int] = np.sort(people[shuffled(len(people), seed, _PEOPLE)[:count]]).tolist()
    return tuple(chosen)


def split(dataset: Dataset, labels: Labels, holdout: Holdout) -> tuple[Subset, Subset]:
    """The two sets, each numbered without gaps: what is left, and what is held out.

    Of a person who is in both, the label is the same in both; held out people follow behind.

    Args:
        dataset: The set.
        labels: Of all its images, none below 0.
        holdout: What is held out.

    Raises:
        ValueError: Nothing is held out, or nothing is left.
    """
    is_out = np.isin(labels, np.array(holdout.people, np.int64))
    left_people = np.unique(labels[~is_out])
    if holdout.images:
        is_out |= ~is_out & (_places(labels, holdout.seed) < holdout.images)
    if not is_out.any() or is_out.all():
        raise ValueError(
            "nothing is held out: every person has one image"
            if not is_out.any()
            else "everything is held out: nothing is left to train on"
        )
    names = names_of(dataset)
    first = kept(dataset, ~is_out, labels, names)
    if not holdout.images:
        return first, kept(dataset, is_out, labels, names)
    old = np.concatenate([left_people, np.unique(np.array(holdout.people, np.int64))])
    new = np.full(dataset.num_classes, -1)
    new[old] = np.arange(len(old))
    indices = np.flatnonzero(is_out)
    part = Part(dataset, indices, new[labels[indices]])
    out_names = None if names is None else [names[label] for label in old.tolist()]
    return first, Subset([part], len(old), out_names, old)


def _places(labels: Labels, seed: int) -> NDArray[np.int64]:
    """The place of every image in a random order of its person's; the last place is `n`.

    So one image of each is never among the first few.
    """
    order = np.lexsort((shuffled(len(labels), seed, _IMAGES), labels))
    starts = np.flatnonzero(np.diff(labels[order], prepend=-1))
    sizes = np.diff(np.append(starts, len(order)))
    within = np.arange(len(order)) - np.repeat(starts, sizes)
    within[starts + sizes - 1] = len(order)
    places = np.empty(len(order), np.int64)
    places[order] = within
    return places
