"""IJB-B and IJB-C in the layout that InsightFace distributes: lists in `meta/`, loose crops.

| file in meta/ | a line |
|---|---|
| `ijbc_name_5pts_score.txt` | image, x and y of five points, the detector's score |
| `ijbc_face_tid_mid.txt` | image, template, media; in the same order |
| `ijbc_template_pair_label.txt` | template, template, 1 for one person and 0 for two |
| `ijbc_1N_gallery_G1.csv`, `_G2.csv` | template, subject, below a heading (IJB-B: `S1`, `S2`) |
| `ijbc_1N_probe_mixed.csv` | template, subject, below a heading |
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from warnings import catch_warnings

import numpy as np
from numpy.typing import NDArray

from facescale.data.images import IMAGE_SIZE, Pixels, decode_whole
from facescale.evaluation.alignment import align

Ints = NDArray[np.int64]
GALLERIES = {"ijbb": ("S1", "S2"), "ijbc": ("G1", "G2")}


class Subjects(NamedTuple):
    """Templates and whose they are, both (n,)."""

    templates: Ints
    subjects: Ints


@dataclass(frozen=True, eq=False)
class IjbSet:
    """The lists of a set; its images stay on the disk until they are asked for.

    Attributes:
        name: "IJB-B" or "IJB-C".
        folder: Where the images lie.
        files: Names of the n images in `folder`.
        points: (n, 5, 2) float32, x and y in pixels of the image.
        scores: (n,) float32, the detector's score of each face.
        templates: (n,) template of each image.
        media: (n,) media of each image: a photograph or a video.
        pairs: (p, 2) templates to compare.
        same: (p,) True where both templates show one person.
        galleries: The two galleries of 1:N, or none where their lists are absent.
        probes: The probes of 1:N, empty where their list is absent.
    """

    name: str
    folder: Path
    files: Sequence[str]
    points: NDArray[np.float32]
    scores: NDArray[np.float32]
    templates: Ints
    media: Ints
    pairs: Ints
    same: NDArray[np.bool_]
    galleries: tuple[Subjects, ...]
    probes: Subjects

    def __len__(self) -> int:
        return len(self.files)

    def require_images(self, start: int, stop: int) -> None:
        """Check that the files of images `start` to `stop` exist, before hours of embedding.

        Raises:
            FileNotFoundError: Some are missing; names the first.
        """
        folder = str(self.folder)
        paths = (os.path.join(folder, name) for name in self.files[start:stop])
        missing = [path for path in paths if not os.path.isfile(path)]
        if missing:
            raise FileNotFoundError(
                f"{len(missing):,} of {stop - start:,} images do not exist, such as {missing[0]}; "
                "unpack all of them, or give their folder by --images"
            )

    def decode_range(self, start: int, stop: int) -> Pixels:
        """Aligned images (stop - start, 112, 112, 3); ValueError or OSError names a bad one."""
        aligned = np.empty((stop - start, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)

        def fill(index: int) -> None:
            path = self.folder / self.files[index]
            try:
                pixels = decode_whole(path.read_bytes())
                aligned[index - start] = align(pixels, self.points[index])
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from error

        # Threads that live no longer than the call: a process may fork between two calls
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(fill, range(start, stop)))
        return aligned


def open_ijb(root: Path | str, images: Path | str | None = None) -> IjbSet:
    """Read the lists of IJB-B or IJB-C below `root`.

    Args:
        root: The folder that has `meta`.
        images: The folder of the images; `root/loose_crop` when not given.

    Raises:
        FileNotFoundError: A list or the folder of images is missing.
        ValueError: A list is damaged, or the lists do not belong to each other.
    """
    root = Path(root)
    folder = root / "loose_crop" if images is None else Path(images)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder; give that of the images by --images")
    meta, target = root / "meta", _target(root)
    files, numbers = _read_named(meta / f"{target}_name_5pts_score.txt", 11, np.float32)
    named, places = _read_named(meta / f"{target}_face_tid_mid.txt", 2, np.int64)
    if files != named:
        raise ValueError(
            f"{meta}: {target}_name_5pts_score.txt and {target}_face_tid_mid.txt do not name the "
            f"same images in the same order ({len(files)} and {len(named)} lines)"
        )
    templates, media = places.astype(np.int64).T
    pairs, same = _read_pairs(meta / f"{target}_template_pair_label.txt", templates)
    galleries, probes = _read_1n(meta, target, templates)
    return IjbSet(
        name=f"IJB-{target[-1].upper()}",
        folder=folder,
        files=files,
        points=np.ascontiguousarray(numbers[:, :10]).reshape(-1, 5, 2),
        scores=np.ascontiguousarray(numbers[:, 10]),
        templates=templates,
        media=media,
        pairs=pairs,
        same=same,
        galleries=galleries,
        probes=probes,
    )


def mates(probes: Ints, gallery: Ints) -> Ints:
    """(probes,) place of each probe's subject in the gallery, where every subject is once.

    Raises:
        ValueError: A probe's subject is not in the gallery, or more than once.
    """
    order = np.argsort(gallery, kind="stable")
    first = np.searchsorted(gallery[order], probes)
    count = np.searchsorted(gallery[order], probes, side="right") - first
    bad = np.flatnonzero(count != 1)
    if len(bad):
        raise ValueError(
            f"subject {probes[bad[0]]} of a probe is {count[bad[0]]} times in the gallery, not "
            "once; the lists of 1:N are damaged, fetch the meta folder again"
        )
    return order[first]


def _target(root: Path) -> str:
    """`ijbb` or `ijbc`, whichever lies there."""
    found = [t for t in GALLERIES if (root / "meta" / f"{t}_face_tid_mid.txt").is_file()]
    if len(found) != 1:
        raise FileNotFoundError(
            f"{root}/meta has {' and '.join(found) or 'neither ijbb nor ijbc'}_face_tid_mid.txt; "
            "give a folder with the lists of one set, IJB-B or IJB-C"
        )
    return found[0]


def _read_named(path: Path, columns: int, dtype: type) -> tuple[list[str], NDArray[np.generic]]:
    """A name and `columns` numbers a line."""
    numbers = _read_numbers(path, range(1, columns + 1), dtype)
    with path.open() as lines:
        names = [line.split(maxsplit=1)[0] for line in lines if line.strip()]
    return names, numbers


def _read_numbers(
    path: Path, columns: range, dtype: type, heading: bool = False, delimiter: str | None = None
) -> NDArray[np.generic]:
    """Some columns of a list, (lines, columns); at least one line."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; fetch the meta folder again")
    try:
        with catch_warnings(action="ignore", category=UserWarning):  # of a list without a line
            numbers: NDArray[np.generic] = np.loadtxt(
                path,
                dtype,
                comments=None,
                delimiter=delimiter,
                skiprows=int(heading),
                usecols=columns,
                ndmin=2,
            )
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}; fetch the meta folder again") from error
    if not len(numbers):
        raise ValueError(f"{path} has no line; fetch the meta folder again")
    return numbers


def _read_pairs(path: Path, known: Ints) -> tuple[Ints, NDArray[np.bool_]]:
    """Templates to compare, (p, 2), and whether both are of one person, (p,)."""
    columns = _read_numbers(path, range(3), np.int64).astype(np.int64, copy=False)
    _require_known(columns[:, :2], known, path)
    same, different = columns[:, 2] == 1, columns[:, 2] == 0
    if not (same | different).all() or not (same.any() and different.any()):
        raise ValueError(
            f"{path}: the third number of a line is 1 for one person and 0 for two, and both are "
            f"needed; there are {same.sum()} ones and {different.sum()} zeros in {len(same)} lines"
        )
    return columns[:, :2], same


def _read_1n(meta: Path, target: str, known: Ints) -> tuple[tuple[Subjects, ...], Subjects]:
    """The galleries and the probes of 1:N; none unless all of their lists are there."""
    names = [f"gallery_{half}" for half in GALLERIES[target]] + ["probe_mixed"]
    paths = [meta / f"{target}_1N_{name}.csv" for name in names]
    if not all(path.exists() for path in paths):
        return (), Subjects(np.empty(0, np.int64), np.empty(0, np.int64))
    *galleries, probes = (_read_subjects(path, known) for path in paths)
    mates(probes.subjects, np.concatenate([gallery.subjects for gallery in galleries]))
    return tuple(galleries), probes


def _read_subjects(path: Path, known: Ints) -> Subjects:
    """Each template once, in rising order."""
    columns = _read_numbers(path, range(2), np.int64, heading=True, delimiter=",")
    rows = np.unique(columns.astype(np.int64), axis=0)
    _require_known(rows[:, 0], known, path)
    twice = np.flatnonzero(np.diff(rows[:, 0]) == 0)
    if len(twice):
        raise ValueError(
            f"{path} gives template {rows[twice[0], 0]} to more than one subject; fetch the meta "
            "folder again"
        )
    return Subjects(rows[:, 0], rows[:, 1])


def _require_known(templates: Ints, known: Ints, path: Path) -> None:
    unknown = np.setdiff1d(templates, known)
    if len(unknown):
        raise ValueError(
            f"{path} names template {unknown[0]}, of which face_tid_mid.txt has no image "
            f"({len(unknown)} such templates)"
        )
