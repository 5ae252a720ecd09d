"""Makes verification sets in InsightFace's `.bin` format, and images of them again."""

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from facescale.data.dataset import open_dataset
from facescale.data.images import IMAGE_SIZE, Encoded, decode, decode_whole, to_file
from facescale.data.labels import labels_of
from facescale.data.pairlist import SUFFIXES, Pair, read_pair_list
from facescale.data.pairs import PairSet
from facescale.datasets.cfp import find_cfp, read_cfp
from facescale.datasets.drawpairs import draw_pairs
from facescale.datasets.parts import suffix_of
from facescale.files import write_whole

_HEADING = ("first", "second", "same")


def is_list(source: Path) -> bool:
    """Whether `source` is a list of pairs or a protocol, not a data set to draw from."""
    return source.suffix.lower() in SUFFIXES or find_cfp(source) is not None


def read_list(source: Path, images: Path | None, protocol: Literal["FP", "FF"]) -> list[Pair]:
    """The pairs of a list; images are looked up below `images`, or where the list lies.

    Raises:
        ValueError: It is no list of pairs.
        OSError: A file is missing.
    """
    if not source.exists():
        raise FileNotFoundError(f"{source} does not exist; give a list of pairs")
    cfp = find_cfp(source) if source.is_dir() else None
    if cfp is not None:
        return read_cfp(cfp, images, protocol)
    return read_pair_list(source, source.parent if images is None else images)


def without_missing(pairs: Sequence[Pair], leave_out: bool) -> list[Pair]:
    """The pairs of which both images are there.

    Raises:
        FileNotFoundError: An image is missing, and its pairs are not to be left out.
    """
    files = {path for pair in pairs for path in pair[:2]}
    missing = sorted(path for path in files if not path.is_file())
    if missing and not leave_out:
        raise FileNotFoundError(
            f"{len(missing)} of {len(files)} images do not exist, such as {missing[0]}; give "
            "--images with the folder that they lie in, or --skip_missing to leave their pairs out"
        )
    gone = set(missing)
    kept = [pair for pair in pairs if not gone & set(pair[:2])]
    if not kept:
        raise FileNotFoundError(f"no pair has both of its images; {missing[0]} does not exist")
    return kept


def pairs_of_files(name: str, pairs: Sequence[Pair], stretch: bool = False) -> PairSet:
    """A set of the files' bytes as they are; errors as in `aligned_file`."""
    known: dict[Path, bytes] = {}

    def read(path: Path) -> bytes:
        if path not in known:  # an image is pickled once, however many pairs it is in
            known[path] = aligned_file(path.read_bytes(), str(path), stretch)
        return known[path]

    images = [read(path) for pair in pairs for path in pair[:2]]
    return PairSet(name, images, np.array([pair.same for pair in pairs]))


def drawn_pairs(
    name: str, source: Path | str, num_pairs: int, folds: int, seed: int, stretch: bool = False
) -> PairSet:
    """A set that is drawn from a data set; errors as in `draw_pairs` and `aligned_file`."""
    dataset = open_dataset(source)
    labels = labels_of(dataset)
    readable = np.flatnonzero(labels >= 0)
    places = draw_pairs(labels[readable], num_pairs, folds, seed)
    pairs = [(int(readable[one]), int(readable[two]), same) for one, two, same in places]
    known: dict[int, bytes] = {}
    for index in sorted({index for pair in pairs for index in pair[:2]}):
        encoded = dataset.read(index).encoded
        known[index] = aligned_file(encoded, dataset.describe(index), stretch)
    images = [known[index] for pair in pairs for index in pair[:2]]
    return PairSet(name, images, np.array([same for _, _, same in pairs]))


def aligned_file(encoded: Encoded, where: str, stretch: bool = False) -> bytes:
    """An image file of 112 x 112 pixels: the bytes as they are, or a PNG of what was no such one.

    Raises:
        ValueError: It is no image, or of another size and not to be stretched.
    """
    try:
        pixels = decode_whole(encoded) if isinstance(encoded, bytes) else encoded
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    if pixels.shape == (IMAGE_SIZE, IMAGE_SIZE, 3):
        return to_file(encoded)
    if not stretch:
        raise ValueError(
            f"{where}: {pixels.shape[1]} x {pixels.shape[0]} pixels, so not an aligned face; align "
            "the photographs by `facescale data align`, or give --stretch"
        )
    return to_file(decode(pixels))


def extract_pairs(pairs: PairSet, folder: Path) -> int:
    """Write each different image of a set once, and `pairs.csv`, which makes the set again.

    Returns:
        How many images there are.

    Raises:
        OSError: A file could not be written.
    """
    first, place = pairs.distinct()
    (folder / "images").mkdir(parents=True, exist_ok=True)
    names = []
    for number, index in enumerate(first):
        content = to_file(pairs.images[index])
        names.append(f"images/{number:06}.{suffix_of(content)}")
        write_whole(folder / names[-1], [content])
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_HEADING)
    for one, two, same in zip(place[0::2], place[1::2], pairs.same, strict=True):
        writer.writerow([names[one], names[two], int(same)])
    write_whole(folder / "pairs.csv", [os.fsencode(text.getvalue())])
    return len(names)
