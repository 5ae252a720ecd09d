"""Who the people of a data set are: their names, and their labels in the set they come from."""

from pathlib import Path
from typing import Any

from facescale.files import require_regular

CLASSES = "classes.txt"
"""Beside a set that was made from another one: the old label of each class, a line each, which
`start.classes` takes."""

_MAX_BYTES = 2**30


def names_of(dataset: Any) -> list[str] | None:
    """The people of an open data set, by label; None where nothing names them."""
    names = getattr(dataset, "class_names", None)
    return None if names is None else list(names)


def read_names(path: Path) -> list[str]:
    """The lines of a text file that are not empty, without white space around them.

    Raises:
        OSError: It cannot be read.
        ValueError: It is larger than a gigabyte, or not UTF-8.
    """
    require_regular(path)
    if path.stat().st_size > _MAX_BYTES:
        raise ValueError(f"{path} is larger than {_MAX_BYTES} bytes; give a list of names")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8: {error.reason}") from error
    return [line.strip() for line in text.splitlines() if line.strip()]


def labels_named(dataset: Any, wanted: list[str], source: str) -> list[int]:
    """The labels of all people of some names, or by number where nothing names the people.

    Raises:
        ValueError: One is unknown; names the first.
    """
    names = names_of(dataset)
    known: dict[str, list[int]] = {}
    for label, name in enumerate(names or []):
        known.setdefault(name, []).append(label)
    labels = []
    for name in wanted:
        found = known.get(name, [])
        if names is None and name.isascii() and name.isdecimal():
            found = [int(name)] if int(name) < dataset.num_classes else []
        if not found:
            what = "no person of that name" if names else "no names, so give labels of its classes"
            raise ValueError(f"{source}: {name[:60]!r}, but the data set has {what}")
        labels += found
    return labels
