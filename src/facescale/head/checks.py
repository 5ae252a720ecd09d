"""What a head refuses: values out of their range, and labels outside the classes."""

import math
import os
from typing import get_args

import torch
from torch import Tensor

from facescale.head.late import LateNumbers
from facescale.head.rules import RuleName
from facescale.head.step import Products

IMPORTED_BY = os.getpid()


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


def check_choices(
    subcentres: int,
    interclass_filter: float | None,
    products: str,
    optimizer: str,
    dtype: torch.dtype,
) -> None:
    """Raise ValueError for a way to train the class centres that there is not."""
    if not 1 <= subcentres <= 255:
        raise ValueError(f"subcentres must be in [1, 255], got {subcentres}")
    if interclass_filter is not None and not 0.0 < interclass_filter <= 1.0:
        raise ValueError(f"interclass_filter must be in (0, 1], got {interclass_filter}")
    for name, value, known in (
        ("products", products, get_args(Products)),
        ("optimizer", optimizer, get_args(RuleName)),
    ):
        if value not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
    if optimizer == "adamw" and dtype == torch.int8:
        raise ValueError(
            "AdamW's second moments have too wide a range for int8 class centres; take float32 or "
            "bfloat16 (head.rows)"
        )


def refuse_threads_after_fork() -> None:
    """Raise RuntimeError where OpenMP would wait for threads that a fork has not copied."""
    threads = torch.get_num_threads()
    if threads > 1 and os.getpid() != IMPORTED_BY:
        raise RuntimeError(
            f"this process was forked and is set to {threads} threads, which can hang: call "
            "torch.set_num_threads(1) in it first, or start it by 'spawn'"
        )


def check_labels(labels: Tensor) -> None:
    """Raise ValueError unless the labels are whole numbers (b,)."""
    if labels.ndim != 1 or labels.is_floating_point():
        raise ValueError(
            f"labels are {tuple(labels.shape)} {labels.dtype}, expected whole numbers of "
            "shape (batch,)"
        )


def check_call(embeddings: Tensor, labels: object, lr: float, dim: int) -> None:
    """Raise ValueError for embeddings that are not (b, dim), other labels (b,), or a wrong rate."""
    if embeddings.ndim != 2 or embeddings.shape[1] != dim:
        raise ValueError(f"embeddings are {tuple(embeddings.shape)}, expected (batch, {dim})")
    if isinstance(labels, Tensor) and labels.shape != embeddings.shape[:1]:
        raise ValueError(f"labels are {tuple(labels.shape)}, expected ({len(embeddings)},)")
    if not 0.0 <= lr < math.inf:
        raise ValueError(f"lr must be a number of 0 or more, got {lr}")
