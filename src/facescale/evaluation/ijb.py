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
    pair_list = meta / f"{target}_template_pair_label.txt"
    pairs = _read_numbers(pair_list, range(3), np.int64).astype(np.int64, copy=False)
    _require_known(pairs[:, :2], templates, pair_list)
    lists = [f"{target}_1N_gallery_{half}.csv" for half in GALLERIES[target]]
    lists.append(f"{target}_1N_probe_mixed.csv")
    subjects = [_read_subjects(meta / name, templates) for name in lists if (meta / name).exists()]
    if len(subjects) != len(lists):  # 1:N needs all of them
        subjects = [Subjects(np.empty(0, np.int64), np.empty(0, np.int64))]
    return IjbSet(
        name=f"IJB-{target[-1].upper()}",
        folder=folder,
        files=files,
        points=np.ascontiguousarray(numbers[:, :10]).reshape(-1, 5, 2),
        scores=np.ascontiguousarray(numbers[:, 10]),
        templates=templates,
        media=media,
        pairs=pairs[:, :2],
        same=pairs[:, 2] == 1,
        galleries=tuple(subjects[:-1]),
        probes=subjects[-1],
    )


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
    _require_file(path)
    with path.open() as lines:
        names = [line.split(maxsplit=1)[0] for line in lines if line.strip()]
    return names, _read_numbers(path, range(1, columns + 1), dtype)


def _read_numbers(
    path: Path, columns: range, dtype: type, heading: bool = False, delimiter: str | None = None
) -> NDArray[np.generic]:
    """Some columns of a list, (lines, columns)."""
    _require_file(path)
    try:
        return np.loadtxt(
            path, dtype, usecols=columns, ndmin=2, skiprows=int(heading), delimiter=delimiter
        )
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}; fetch the meta folder again") from error


def _read_subjects(path: Path, known: Ints) -> Subjects:
    """Each template once, in rising order."""
    columns = _read_numbers(path, range(2), np.int64, heading=True, delimiter=",")
    _require_known(columns[:, 0], known, path)
    templates, first = np.unique(columns[:, 0], return_index=True)
    return Subjects(templates, columns[first, 1].astype(np.int64))


def _require_known(templates: NDArray[np.generic], known: Ints, path: Path) -> None:
    unknown = np.setdiff1d(templates, known)
    if len(unknown):
        raise ValueError(
            f"{path} names template {unknown[0]}, of which face_tid_mid.txt has no image "
            f"({len(unknown)} such templates)"
        )


def _require_file(path: Path) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; fetch the meta folder again")
