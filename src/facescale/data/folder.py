"""A folder of images per person: `person/image.jpg`."""

import os
from pathlib import Path

import numpy as np

from facescale.data.images import Sample

_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".pgm", ".ppm", ".tif", ".tiff")


class ImageFolder:
    """Every folder in `path` is a person; the label counts the folders sorted by name.

    Hidden folders and files whose suffix is not that of an image are passed over.

    Attributes:
        path: The folder.
        class_names: The people's folders, by label.
    """

    def __init__(self, path: str | Path) -> None:
        """Find the images of `path`; ValueError if there are none, or a person has none."""
        self.path = Path(path)
        self.class_names = sorted(
            entry.name
            for entry in os.scandir(self.path)
            if entry.is_dir() and not entry.name.startswith(".")
        )
        if not self.class_names:
            raise ValueError(f"{path} has no folders; put the images in one folder per person")
        people = [self._image_names(name) for name in self.class_names]
        self._names = [name for names in people for name in names]
        self._labels = np.repeat(np.arange(len(people)), [len(names) for names in people])

    def _image_names(self, person: str) -> list[str]:
        folder = self.path / person
        names = sorted(name for name in os.listdir(folder) if name.lower().endswith(_SUFFIXES))
        if not names:
            raise ValueError(
                f"{folder} has no images ({' '.join(_SUFFIXES)}); "
                "remove it, or put the person's images directly into it"
            )
        return names

    @property
    def num_classes(self) -> int:
        """Number of people."""
        return len(self.class_names)

    def __len__(self) -> int:
        return len(self._names)

    def read(self, index: int) -> Sample:
        """The file of image `index`, and its label."""
        return Sample(self._file(index).read_bytes(), int(self._labels[index]))

    def describe(self, index: int) -> str:
        """The path of image `index`."""
        return str(self._file(index))

    def _file(self, index: int) -> Path:
        person: str = self.class_names[self._labels[index]]
        return self.path / person / self._names[index]
