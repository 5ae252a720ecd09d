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
USUAL = ("lfw", "cfp_fp", "agedb_30", "cfp_ff", "calfw", "cplfw", "vgg2_fp")
"""The sets that InsightFace's training sets bring along."""


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
    places = dict.fromkeys(_places(sources, data_path))
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


def unused(sources: Sequence[str], data_path: str | list[str] | None) -> str:
    """What to say of usual sets beside the data where a run verifies nothing; "" otherwise."""
    beside = _folders(data_path)[1:]
    there = [name for name in USUAL if any((at / f"{name}.bin").is_file() for at in beside)]
    if sources or not there:
        return ""
    return (
        "nothing is verified, since evaluation.sets is empty; the data comes with sets: "
        f"--evaluation.sets {' '.join(there)}"
    )


def _places(sources: Iterable[str], data_path: str | list[str] | None) -> list[Path]:
    """Where each set lies; `att` is a place too."""
    asked = list(sources)
    found = {source: _place(source, data_path) for source in asked}
    if missing := [source for source, place in found.items() if place is None]:
        tried = " nor ".join(map(str, _tried(missing[0], data_path)))
        more = f" ({', '.join(missing[1:])} missing too)" if missing[1:] else ""
        without = "" if data_path is None else ", or train without any: --evaluation.sets '[]'"
        raise FileNotFoundError(
            f"no verification set {missing[0]!r}: there is no {tried}{more}; give the path of a "
            ".bin file (InsightFace's training sets bring some), make one with `facescale data "
            f"pairs`{without}"
        )
    return [place for place in found.values() if place is not None]


def _place(source: str, data_path: str | list[str] | None) -> Path | None:
    if source == "att" or Path(source).is_file():
        return Path(source)
    tried = [folder / name for folder in _folders(data_path) for name in (source, f"{source}.bin")]
    return next((path for path in tried if path.is_file()), None)


def _tried(source: str, data_path: str | list[str] | None) -> list[Path]:
    """Where a set that is missing could have been."""
    name = source if Path(source).suffix else f"{source}.bin"
    return [folder / name for folder in _folders(data_path)]


def _folders(data_path: str | list[str] | None) -> list[Path]:
    """The current folder, and those of the data."""
    folders = [Path()]
    for name in [data_path] if isinstance(data_path, str) else data_path or []:
        if name not in ("att", "synthetic") and "://" not in name:
            data = Path(name)
            folders.append(data if data.is_dir() else data.parent)
    return folders


def _names(places: list[Path]) -> dict[Path, str]:
    """The shortest ends of the paths that differ, without the suffix if they differ without it."""
    stems = [place.with_suffix("") for place in places]
    named = stems if len(set(stems)) == len(stems) else places
    return dict(zip(places, shortest_names(named), strict=True))
