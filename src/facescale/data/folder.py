"""A folder of images per person: `person/image.jpg`."""

import logging
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from facescale.data.found import Found, people_digest
from facescale.data.images import IMAGE_SUFFIXES, Sample
from facescale.data.sampletable import read_range

_MAX_OUTER = 4  # folders around the people's, each the only one in its place

_log = logging.getLogger(__name__)


class ImageFolder:
    """Every folder of images in `path` is a person; labels follow the folders' names, sorted.

    Hidden files and folders, and files without the suffix of an image, are passed over. Outer
    folders that hold nothing but one folder are entered. The two levels of WebFace260M
    (`0/0_17/image.jpg`) are read, where every person's name begins with the outer folder's.

    Attributes:
        path: The folder that holds the people's.
        class_names: The people's folders, by label, relative to `path`.
    """

    def __init__(self, path: str | Path) -> None:
        """Find the images of `path`.

        Raises:
            ValueError: There are none, a person has none, or a link leads nowhere.
            OSError: A folder cannot be read; the error names it.
        """
        self.path = Path(path)
        people = self._find()
        self.class_names = sorted(people)
        images = [people[name] for name in self.class_names]
        self._names = [name for names in images for name in names]
        self._labels = np.repeat(np.arange(len(images)), [len(names) for names in images])

    def _find(self) -> dict[str, list[str]]:
        """The images of each person; enters outer folders."""
        for _ in range(_MAX_OUTER):
            folders = {name: _list(self.path / name) for name in _list(self.path).folders}
            if not folders:
                break
            if any(found.images for found in folders.values()):
                return {name: self._images(name, found) for name, found in folders.items()}
            if len(folders) > 1:
                return self._find_in_two_levels(folders)
            (name,) = folders
            if not folders[name].folders:
                return {name: self._images(name, folders[name])}  # says that there are none
            _log.info("%s holds one folder: looking for people in %s", self.path, name)
            self.path /= name
        raise ValueError(
            f"{printable(self.path)} has no folders of images; put the images in one folder per "
            "person"
        )

    def _find_in_two_levels(self, outer: "dict[str, _Listing]") -> dict[str, list[str]]:
        people = {}
        for name, found in outer.items():
            if not found.folders:
                self._images(name, found)
            for inner in found.folders:
                if not inner.startswith(f"{name}_"):
                    raise ValueError(
                        f"{printable(self.path)} holds folders of folders, such as "
                        f"{printable(f'{name}/{inner}')}, and it is not plain which are people; "
                        "give a folder that holds one folder of images per person"
                    )
                person = f"{name}/{inner}"
                people[person] = self._images(person, _list(self.path / person))
        return people

    def _images(self, person: str, found: "_Listing") -> list[str]:
        if not found.images:
            raise ValueError(
                f"{printable(self.path / person)} has no images ({' '.join(IMAGE_SUFFIXES)}); "
                "remove it, or put the person's images directly into it"
            )
        return found.images

    @property
    def num_classes(self) -> int:
        """Number of people."""
        return len(self.class_names)

    def __len__(self) -> int:
        return len(self._names)

    def read(self, index: int) -> Sample:
        """The file of image `index`, and its label.

        Raises:
            OSError: It cannot be read.
            ValueError: It is larger than any image, or no regular file any more.
        """
        file = self._file(index)
        return Sample(read_range(file, 0, file.stat().st_size), int(self._labels[index]))

    def labels(self) -> NDArray[np.int64]:
        """The label of every image; (n,)."""
        return self._labels

    def describe(self, index: int) -> str:
        """The path of image `index`."""
        return printable(self._file(index))

    def found(self) -> Found:
        """Who is there: the digest is of the people's names."""
        people = people_digest(self.num_classes, None, self.class_names)
        return Found(len(self), self.num_classes, 0, people)

    def _file(self, index: int) -> Path:
        person: str = self.class_names[self._labels[index]]
        return self.path / person / self._names[index]


class _Listing(NamedTuple):
    images: list[str]
    folders: list[str]


def _list(folder: Path) -> _Listing:
    """The images and folders in a folder, sorted by name."""
    images, folders = [], []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):  # of macOS: ._0.jpg, .DS_Store
                continue
            if entry.is_symlink() and not os.path.exists(entry.path):
                raise ValueError(
                    f"{printable(entry.path)} is a link to nothing; remove it, or restore "
                    f"{printable(os.readlink(entry.path))}"
                )
            if entry.is_dir():
                folders.append(entry.name)
            elif entry.name.lower().endswith(IMAGE_SUFFIXES) and entry.is_file():
                images.append(entry.name)
    return _Listing(sorted(images), sorted(folders))


def printable(path: str | Path) -> str:
    """A path with the bytes that are not UTF-8 escaped, which print would stumble over."""
    return os.fsencode(path).decode(errors="backslashreplace")
