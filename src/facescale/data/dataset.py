"""What a data set is, and how to open whatever lies at a path."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from facescale.data.att import AttFaces
from facescale.data.folder import ImageFolder
from facescale.data.found import Found, found_in
from facescale.data.images import Sample
from facescale.data.joined import Joined, People, shared_names
from facescale.data.listfile import ListFile, is_list
from facescale.data.ofrecord import OFRecord, is_ofrecord
from facescale.data.outer import find_records
from facescale.data.recordio import RecordIO
from facescale.data.synthetic import Synthetic
from facescale.data.tar import TarShards, is_tar

__all__ = ["Dataset", "Format", "Found", "Sample", "found_in", "open_dataset", "register"]


class Dataset(Protocol):
    """Images of people by number. Reading is safe from several threads and after a fork.

    A data set may also have a method `found() -> Found`, which says who is in it, a method
    `labels()` that returns the label of every image, (n,), and a list `class_names` of the people
    by label; `found_in` and `labels_of` answer for all.
    """

    @property
    def num_classes(self) -> int:
        """Labels lie in [0, num_classes)."""

    def __len__(self) -> int:
        """Number of images."""

    def read(self, index: int) -> Sample:
        """Image `index` in [0, len) and its label, not decoded.

        Raises:
            ValueError: The record is damaged: best an `UnreadableRecord`.
            OSError: The system cannot read it.
        """

    def describe(self, index: int) -> str:
        """Where image `index` comes from, for messages: `train.rec record 17`."""


@dataclass(frozen=True)
class Format:
    """A kind of data set, and how to open one."""

    name: str
    """For messages: "a folder with train.rec"."""
    claims: Callable[[str], bool]
    """Whether a source, a path as a rule, is there and of this kind."""
    open: Callable[[str], Dataset]
    """Raises ValueError for a damaged one."""


_log = logging.getLogger(__name__)

FORMATS: list[Format] = []
"""The last one that claims a source opens it."""


def register(format: Format) -> Format:
    """Add a kind of data set; it goes before those that are there."""
    FORMATS.append(format)
    return format


def _open_records(source: str) -> Dataset:
    records = find_records(Path(source))
    assert records is not None  # the format has claimed it
    return RecordIO(records)


register(Format("'att'", lambda source: source == "att", lambda source: AttFaces()))
register(
    Format(
        "a folder of images per person (person/image.jpg)",
        lambda source: Path(source).is_dir() and any(e.is_dir() for e in Path(source).iterdir()),
        lambda source: ImageFolder(Path(source)),
    )
)
register(Format("a list of paths and labels (.csv, .lst, .txt)", is_list, ListFile))
register(Format("tar shards (a folder, x-{000..099}.tar, a URL)", is_tar, TarShards))
register(Format("a folder of OFRecord parts (part-00000)", is_ofrecord, OFRecord))
register(
    Format(
        "a folder with train.rec or a .rec file",
        lambda source: find_records(Path(source)) is not None,
        _open_records,
    )
)


def open_dataset(
    source: str | Path | Sequence[str | Path],
    *,
    num_classes: int | None = None,
    num_images: int | None = None,
    people: People = "apart",
) -> Dataset:
    """Open the data set that lies at a path, or one that needs no path.

    Args:
        source: A folder with `train.rec`, a `.rec` file, a folder of images per person, a list, tar
            shards, OFRecord parts, `"synthetic"`, `"att"` (the first 30 people of the AT&T faces),
            or what another registered format claims. Several sources are joined.
        num_classes: How many people; the size of a synthetic set, else checked.
        num_images: How many images, likewise.
        people: Of several sources: "by_name" joins people of the same name, "apart" does not.

    Raises:
        FileNotFoundError: Nothing lies there.
        ValueError: It is no data set, a damaged one, or not of the size that was given.
    """
    if source == "synthetic":
        if num_classes is None or num_images is None:
            raise ValueError("a synthetic data set needs num_classes and num_images")
        return Synthetic(num_classes, num_images)
    dataset = _open(str(source)) if isinstance(source, str | Path) else _join(source, people)
    for name, stated, found in (
        ("num_classes", num_classes, dataset.num_classes),
        ("num_images", num_images, len(dataset)),
    ):
        if stated not in (None, found):
            raise ValueError(
                f"{source}: {name} is {found}, not {stated} as stated; "
                f"correct or leave out {name}, or fetch the set again"
            )
    return dataset


def _join(sources: Sequence[str | Path], people: People) -> Dataset:
    datasets = [_open(str(source)) for source in sources]
    joined = Joined(datasets, people)
    if people == "apart" and (shared := shared_names(datasets)):
        _log.warning(
            "%d names occur in several of the sets, and are taken for different people; "
            "data.people: by_name joins them",
            shared,
        )
    return joined


def _open(source: str) -> Dataset:
    for format in reversed(FORMATS):
        if format.claims(source):
            return format.open(source)
    kinds = f"give {', '.join(format.name for format in reversed(FORMATS))}, or 'synthetic'"
    if Path(source).is_symlink() and not Path(source).exists():
        raise FileNotFoundError(f"{source} is a symbolic link whose target is missing; {kinds}")
    if not Path(source).exists():
        raise FileNotFoundError(f"{source} does not exist; {kinds}")
    raise ValueError(f"{source} is not a data set; {kinds}")
