"""The label of every image of a data set, without decoding any."""

import logging
from typing import Any

import numpy as np
from numpy.typing import NDArray

_log = logging.getLogger(__name__)


def labels_of(dataset: Any) -> NDArray[np.int64]:
    """The label of every image, (n,); -1 where it cannot be read or is out of range.

    Taken from `dataset.labels()` where there is such a method; otherwise every record is read.
    """
    if hasattr(dataset, "labels"):
        labels: NDArray[np.int64] = np.asarray(dataset.labels(), np.int64)
    else:
        _log.info("reading the labels of %d images", len(dataset))
        labels = np.fromiter((_label(dataset, i) for i in range(len(dataset))), np.int64)
    return np.where((labels >= 0) & (labels < dataset.num_classes), labels, -1)


def _label(dataset: Any, index: int) -> int:
    try:
        return int(dataset.read(index).label)
    except (ValueError, OSError):
        return -1
