"""What a data set is, and how to open whatever lies at a path."""

from pathlib import Path
from typing import Protocol

from facescale.data.att import AttFaces
from facescale.data.folder import ImageFolder
from facescale.data.images import Sample
from facescale.data.recordio import RecordIO
from facescale.data.synthetic import Synthetic

__all__ = ["Dataset", "Sample", "open_dataset"]

_KINDS = (
    "give a folder with train.rec, a .rec file, a folder of images per person "
    "(person/image.jpg), 'synthetic' or 'att'"
)


class Dataset(Protocol):
    """Images of people by number. Reading is safe from several threads and after a fork."""

    @property
    def num_classes(self) -> int:
        """Labels lie in [0, num_classes)."""

    def __len__(self) -> int:
        """Number of images."""

    def read(self, index: int) -> Sample:
        """Image `index` in [0, len) and its label, not decoded; ValueError names what is broken."""

    def describe(self, index: int) -> str:
        """Where image `index` comes from, for messages: `train.rec record 17`."""


def open_dataset(
    source: str | Path, *, num_classes: int | None = None, num_images: int | None = None
) -> Dataset:
    """Open the data set that lies at a path, or one that needs no path.

    Args:
        source: A folder with `train.rec`, a `.rec` file, a folder of images per person,
            `"synthetic"`, or `"att"` (the first 30 people of the AT&T faces).
        num_classes: How many people; the size of a synthetic set, else checked.
        num_images: How many images, likewise.

    Raises:
        FileNotFoundError: Nothing lies there.
        ValueError: It is no data set, a damaged one, or not of the size that was given.
    """
    if source == "synthetic":
        if num_classes is None or num_images is None:
            raise ValueError("a synthetic data set needs num_classes and num_images")
        return Synthetic(num_classes, num_images)
    dataset = AttFaces() if source == "att" else _open_path(Path(source))
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


def _open_path(path: Path) -> Dataset:
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; {_KINDS}")
    if path.suffix == ".rec" or (path / "train.rec").exists():
        return RecordIO(path)
    if path.is_dir() and any(entry.is_dir() for entry in path.iterdir()):
        return ImageFolder(path)
    raise ValueError(f"{path} is not a data set; {_KINDS}")
