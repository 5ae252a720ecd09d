"""Verification sets by path or by name, each under a name of its own, decoded before step 1."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from facescale.data.att import att_pairs
from facescale.data.pairlist import SUFFIXES, load_pair_list
from facescale.data.pairs import PairSet, load_pairs
from facescale.distributed import Group
from facescale.evaluation.verification import check_pairs, choose_folds
from facescale.files import shortest_names

DECODED = 64  # images at a time, whose pixels are then dropped


def open_sets(
    sources: Iterable[str], data_path: str | list[str] | None = None, images: str | None = None
) -> list[PairSet]:
    """The sets at `sources`: .bin files, lists of pairs, "att", or names such as `lfw`.

    A name is that of a .bin file here or beside the data. Two files of one stem are told apart by
    their folders: `a/lfw` and `b/lfw`.

    Args:
        sources: Where the sets are.
        data_path: `data.path` of the training set.
        images: Folder of the images of lists of pairs; that of the list when not given.

    Raises:
        FileNotFoundError, ValueError: A set is missing or damaged.
    """
    places = dict.fromkeys(_place(source, data_path) for source in sources)
    names = _names(list(places))
    folder = None if images is None else Path(images)
    return [replace(_open(place, folder), name=names[place]) for place in places]


def _open(place: Path, images: Path | None) -> PairSet:
    if str(place) == "att":
        return att_pairs()
    if place.suffix.lower() in SUFFIXES:
        return load_pair_list(place, images)
    return load_pairs(place)


def check_sets(sets: Sequence[PairSet], world: Group) -> None:
    """Decode every image of `sets`, each rank its share, and try the folds. A collective.

    A set that cannot be judged is then found before the first step, not after the last.

    Raises:
        ValueError: A set has a damaged image or cannot be folded; on every rank alike.
    """
    failure = ""
    try:
        for pairs in sets:
            check_pairs(pairs.same, choose_folds(pairs.same))
            mine = pairs.distinct()[0][world.rank :: world.size]
            for first in range(0, len(mine), DECODED):
                pairs.decode(mine[first : first + DECODED])
    except ValueError as error:
        failure = str(error)
    for said in world.gather_texts(failure):
        if said:
            raise ValueError(f"{said}. Repair the set, or leave it out of evaluation.sets")


def _place(source: str, data_path: str | list[str] | None) -> Path:
    """Where a set lies; `att` is a place too."""
    if source == "att" or Path(source).is_file():
        return Path(source)
    folders = [Path()]
    for name in [data_path] if isinstance(data_path, str) else data_path or []:
        if name not in ("att", "synthetic") and "://" not in name:
            data = Path(name)
            folders.append(data if data.is_dir() else data.parent)
    tried = [folder / name for folder in folders for name in (source, f"{source}.bin")]
    for path in tried:
        if path.is_file():
            return path
    looked = " nor ".join(str(path) for path in tried if path.suffix == ".bin")
    raise FileNotFoundError(f"no verification set {source!r}: there is no {looked}")


def _names(places: list[Path]) -> dict[Path, str]:
    """The shortest ends of the paths that differ, without the suffix if they differ without it."""
    stems = [place.with_suffix("") for place in places]
    named = stems if len(set(stems)) == len(stems) else places
    return dict(zip(places, shortest_names(named), strict=True))
