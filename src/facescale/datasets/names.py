"""The names of people: of a folder those of its folders, of other sets a file beside them."""

from pathlib import Path
from typing import Any

from facescale.files import write_whole

NAMES = "names.txt"
"""Beside the files of a data set: a name for each class, a line each, in the order of the labels.
`start.names` takes two such files."""

CLASSES = "classes.txt"
"""Beside a set that was made from another one: the old label of each class, or `new`, a line each,
which `start.classes` takes."""


def names_of(dataset: Any) -> list[str] | None:
    """The people of an open data set, by label; None where nothing names them.

    Raises:
        ValueError: The file of names is of another number of people, or is no text.
    """
    names = getattr(dataset, "class_names", None)
    if names is not None:
        return list(names)
    path = getattr(dataset, "path", None)
    if path is None:
        return None
    file = (Path(path) if Path(path).is_dir() else Path(path).parent) / NAMES
    if not file.is_file():
        return None
    lines = read_lines(file)
    if len(lines) != dataset.num_classes:
        raise ValueError(
            f"{file} has {len(lines)} lines, but the data has {dataset.num_classes} people; "
            "correct it, or move it aside"
        )
    return lines


def read_lines(path: Path) -> list[str]:
    """The lines of a text file without white space around them.

    Raises:
        OSError: It cannot be read.
        ValueError: It is not UTF-8.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8: {error.reason}") from error
    return [line.strip() for line in text.splitlines()]


def write_lines(path: Path, lines: list[str]) -> None:
    """Write a line each; a name with a line break in it is written with a space."""
    write_whole(path, [" ".join(line.split()).encode(errors="replace") + b"\n" for line in lines])
