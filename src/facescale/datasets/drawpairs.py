"""Draws verification pairs from images with labels; no person is in two folds."""

import math
from collections.abc import Sequence
from itertools import combinations, count

import numpy as np
from numpy.typing import NDArray

from facescale.random import derive_seed

Triple = tuple[int, int, bool]

_DRAW = 0x7061697273  # tells this use of the seed apart
_TRIES = 20  # for each pair, before all are listed


def draw_pairs(labels: NDArray[np.int64], num_pairs: int, folds: int, seed: int) -> list[Triple]:
    """Pairs of images, fold after fold, in each as many of one person as of two, in this order.

    People take turns, so that one with many images has no more pairs than the others as long as
    they have any left. No pair is drawn twice.

    Args:
        labels: (n,) the person of each image.
        num_pairs: In all folds together.
        folds: People are dealt to them.
        seed: Another seed, other people and pairs.

    Returns:
        First and second image, and whether they show one person; `num_pairs` of them.

    Raises:
        ValueError: `num_pairs` cannot be shared evenly, or a fold has too few images.
    """
    if folds < 1 or num_pairs < 1 or num_pairs % (2 * folds):
        raise ValueError(
            f"{num_pairs} pairs cannot be shared by {folds} folds, half of them of one person; "
            f"give a multiple of {2 * max(1, folds)}"
        )
    random = np.random.default_rng(derive_seed(seed, _DRAW))
    order = np.argsort(labels, kind="stable")
    starts = np.flatnonzero(np.diff(labels[order], prepend=labels[order[0]] - 1))
    people = np.split(order, starts[1:])
    random.shuffle(people)
    people.sort(key=lambda images: len(images) < 2)  # those without a pair are dealt last
    wanted = num_pairs // folds // 2
    _check_enough(people, folds, wanted)
    drawn: list[Triple] = []
    for fold in range(folds):
        own = people[fold::folds]
        drawn += [(first, second, True) for first, second in _of_one(own, wanted, random)]
        drawn += [(first, second, False) for first, second in _of_two(own, wanted, random)]
    return drawn


def _check_enough(people: Sequence[NDArray[np.int64]], folds: int, wanted: int) -> None:
    """Raise ValueError, with the largest number of pairs, if a fold has too few of either kind."""
    fewest = wanted
    for fold in range(folds):
        sizes = [len(images) for images in people[fold::folds]]
        of_one = sum(size * (size - 1) // 2 for size in sizes)
        of_two = (sum(sizes) ** 2 - sum(size**2 for size in sizes)) // 2
        fewest = min(fewest, of_one, of_two)
    if fewest < wanted:
        most = 2 * folds * fewest
        remedy = f"draw {most:,} at most (--pairs), or " if most else ""
        raise ValueError(
            f"{len(people):,} people are too few for {2 * folds * wanted:,} pairs in folds of "
            f"different people; {remedy}make fewer folds than {folds} (--folds)"
        )


def _of_one(
    people: Sequence[NDArray[np.int64]], wanted: int, random: np.random.Generator
) -> list[tuple[int, int]]:
    """Up to `wanted` pairs of one person each; people take turns."""
    turns = []
    for images in people:
        total = len(images) * (len(images) - 1) // 2
        if total:
            chosen = random.choice(total, min(total, wanted), replace=False)
            turns.append([_pair(images, int(number)) for number in chosen])
    pairs: list[tuple[int, int]] = []
    for turn in count():
        here = [own[turn] for own in turns if turn < len(own)]
        pairs += here
        if not here or len(pairs) >= wanted:
            return pairs[:wanted]
    raise AssertionError


def _pair(images: NDArray[np.int64], number: int) -> tuple[int, int]:
    """Pair `number` of all pairs of `images`."""
    second = (1 + math.isqrt(1 + 8 * number)) // 2
    return int(images[number - second * (second - 1) // 2]), int(images[second])


def _of_two(
    people: Sequence[NDArray[np.int64]], wanted: int, random: np.random.Generator
) -> list[tuple[int, int]]:
    """Up to `wanted` pairs of two people; all people alike, if that gives enough."""
    found: dict[tuple[int, int], None] = {}
    for _ in range(_TRIES * wanted if len(people) > 1 else 0):
        if len(found) == wanted:
            break
        one, two = np.sort(random.choice(len(people), 2, replace=False))
        found[int(random.choice(people[one])), int(random.choice(people[two]))] = None
    if len(found) < wanted:  # nearly all there are: draw from the list of them
        every = [(int(a), int(b)) for one, two in combinations(people, 2) for a in one for b in two]
        chosen = random.choice(len(every), min(wanted, len(every)), replace=False) if every else ()
        return [every[number] for number in chosen]
    return list(found)
