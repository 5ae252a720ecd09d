"""What a head refuses: values out of their range, and labels outside the classes."""

import math
from typing import get_args

import torch
from torch import Tensor

from facescale.head.late import LateNumbers
from facescale.head.step import Products


class LabelCheck:
    """Refuses labels outside [0, num_classes): at once, or one step later where `deferred`."""

    def __init__(self, num_classes: int, *, deferred: bool) -> None:
        self.num_classes, self.deferred = num_classes, deferred
        self._waiting: tuple[int, LateNumbers] | None = None

    def __call__(self, labels: Tensor, step: int) -> Tensor:
        """Check the labels (B,) of a step; returns whether one of them is outside, ().

        Raises:
            ValueError: A label is outside: of this step, or of the last one where `deferred`.
        """
        self.settle()
        outside = (labels < 0) | (labels >= self.num_classes)
        bad = outside.any()
        if len(labels):
            example = labels.index_select(0, outside.byte().argmax(0, keepdim=True))
            self._waiting = step, LateNumbers(torch.cat([bad.long()[None], example]))
        if not self.deferred:
            self.settle()
        return bad

    def settle(self) -> None:
        """Read what the last check found. Raises ValueError as a call does."""
        if self._waiting is None:
            return
        (step, numbers), self._waiting = self._waiting, None
        bad, label = numbers.read()
        if bad:
            when = f"step {step} of the head, which changed nothing: " if self.deferred else ""
            raise ValueError(
                f"{when}label {label} but num_classes is {self.num_classes}; labels run from 0 "
                f"to {self.num_classes - 1}: raise num_classes or correct the labels"
            )


def check_values(
    num_classes: int,
    embedding_dim: int,
    scale: float,
    sample_rate: float,
    momentum: float,
    weight_decay: float,
    seed: int,
) -> None:
    """Raise ValueError for what is out of its range; a comparison with NaN is false."""
    for name, value, fits, wanted in (
        ("num_classes", num_classes, num_classes >= 1, "at least 1"),
        ("embedding_dim", embedding_dim, embedding_dim >= 1, "at least 1"),
        ("scale", scale, 0.0 < scale <= 300.0, "in (0, 300]"),
        ("sample_rate", sample_rate, 0.0 < sample_rate <= 1.0, "in (0, 1]"),
        ("momentum", momentum, 0.0 <= momentum < 1.0, "in [0, 1)"),
        ("weight_decay", weight_decay, 0.0 <= weight_decay < math.inf, "a number of 0 or more"),
        ("seed", seed, 0 <= seed < 2**64, "in [0, 2**64)"),
    ):
        if not fits:
            raise ValueError(f"{name} must be {wanted}, got {value}")


def check_products(products: str) -> None:
    """Raise ValueError for a way to round products that there is not."""
    if products not in get_args(Products):
        raise ValueError(
            f"products must be one of {', '.join(get_args(Products))}, got {products!r}"
        )
