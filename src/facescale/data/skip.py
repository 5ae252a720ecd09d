"""Lists of records that training leaves out, as `facescale data check --skip-list` writes them.

A list is text: the index of a record in its data set at the start of each line, anything behind it,
and comments after `#`. A first line as `header` writes it ties the list to its data set.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from facescale.data.found import Found, digest, found_in
from facescale.data.images import Sample
from facescale.data.labels import labels_of
from facescale.files import require_regular, write_whole

_HEADER = re.compile(r"# records to leave out of (\d{1,18}) images of people ([0-9a-f]{1,64})\s*")
_MAX_DIGITS = 18


class WithoutSkipped:
    """A data set without some of its records; the others keep their order, and are renumbered.

    Attributes:
        dataset: With all records.
        skipped: Indices of the records that are left out, sorted; (k,).
        num_classes: Of `dataset`.
    """

    def __init__(self, dataset: Any, skipped: NDArray[np.int64]) -> None:
        """Leave `skipped` out of `dataset`; ValueError if nothing remains."""
        self.dataset, self.skipped = dataset, np.unique(skipped)
        self.num_classes: int = dataset.num_classes
        if len(self) < 1:
            raise ValueError(f"the list leaves out all {len(dataset)} records of the data set")
        self._kept_before = self.skipped - np.arange(len(self.skipped))

    def __len__(self) -> int:
        return len(self.dataset) - len(self.skipped)

    def place(self, index: int) -> int:
        """Where image `index` is in the whole data set."""
        return index + int(np.searchsorted(self._kept_before, index, side="right"))

    def read(self, index: int) -> Sample:
        """Image `index` of those that are kept, as the data set reads it."""
        sample: Sample = self.dataset.read(self.place(index))
        return sample

    def labels(self) -> NDArray[np.int64]:
        """The labels of the images that are kept; -1 where they cannot be read."""
        return np.delete(labels_of(self.dataset), self.skipped)

    def describe(self, index: int) -> str:
        """Where image `index` comes from."""
        text: str = self.dataset.describe(self.place(index))
        return text

    def found(self) -> Found:
        """The same people; the images that are kept."""
        return found_in(self.dataset)._replace(num_images=len(self))

    def fingerprint(self) -> str:
        """Of the records that are left out."""
        return digest([self.skipped])


def header(found: Found) -> str:
    """The first line of a list for the data set of `found`."""
    return f"# records to leave out of {found.num_images} images of people {found.people}"


def require_replaceable(path: Path) -> None:
    """ValueError if there is a file at `path` that `write_skip_list` has not written."""
    if not path.exists():
        return
    require_regular(path)
    with path.open(encoding="utf-8", errors="replace") as file:
        first = file.readline(200)
    if first and not _HEADER.fullmatch(first):
        raise ValueError(f"{path} exists and is not a skip list of `data check`; name another file")


def write_skip_list(path: Path, found: Found, lines: Iterable[tuple[int, str]]) -> None:
    """Write a list: an index of a record and why it is left out, a line each."""
    text = (f"{index}\t{' '.join(reason.split())}\n".encode() for index, reason in lines)
    write_whole(path, [f"{header(found)}\n".encode(), *text])


def leave_out(dataset: Any, path: Path) -> WithoutSkipped:
    """`dataset` without the records that the list at `path` has.

    Raises:
        OSError: It cannot be read.
        ValueError: It is no such list, or is of another data set.
    """
    require_regular(path)
    found, skipped = found_in(dataset), []
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        for number, line in enumerate(file, 1):
            if stated := _HEADER.fullmatch(line):
                _check(path, stated, found)
            word = line.partition("#")[0].split(maxsplit=1)
            if not word:
                continue
            text = word[0]
            is_index = text.isascii() and text.isdecimal() and len(text) <= _MAX_DIGITS
            if not is_index or int(text) >= len(dataset):
                raise ValueError(
                    f"{path}, line {number}: {text[:40]!r} is no index of a record, which are 0 to "
                    f"{len(dataset) - 1}; write the list again with `facescale data check`"
                )
            skipped.append(int(text))
    return WithoutSkipped(dataset, np.array(skipped, np.int64))


def _check(path: Path, stated: re.Match[str], found: Found) -> None:
    num_images, people = int(stated[1]), stated[2]
    if (num_images, people) == (found.num_images, found.people):
        return
    what = (
        f"{num_images} images, and this one has {found.num_images}"
        if num_images != found.num_images
        else "other people or records"
    )
    raise ValueError(
        f"{path} is the skip list of a data set of {what}; write one for this data with "
        "`facescale data check --skip-list`"
    )
