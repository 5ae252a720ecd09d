"""Finds a set of records in the folder around it, as archives unpack to."""

import itertools
import logging
from pathlib import Path

_MAX_FOLDERS = 100  # of people there are more

_log = logging.getLogger(__name__)


def find_records(path: Path) -> Path | None:
    """The `.rec` file that is `path`, or lies in it or in a folder of it; None if there is none.

    Raises:
        ValueError: Several folders of `path` hold one.
    """
    if path.suffix == ".rec" and path.is_file():
        return path
    if (path / "train.rec").exists():
        return path / "train.rec"
    if not path.is_dir():
        return None
    folders = (entry for entry in path.iterdir() if entry.is_dir())
    some = sorted(itertools.islice(folders, _MAX_FOLDERS))
    found = [folder / "train.rec" for folder in some if (folder / "train.rec").exists()]
    if len(found) > 1:
        names = ", ".join(str(records.parent) for records in found[:5])
        raise ValueError(f"{path} holds several data sets; give one of {names}")
    if found:
        _log.info("%s holds a data set: opening %s", path, found[0].parent)
        return found[0]
    return None
