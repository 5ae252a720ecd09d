"""Files that are whole whenever they are there, and errors that name the file."""

import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


def write_whole(path: Path, parts: Iterable[bytes | memoryview]) -> None:
    """Write `path` such that it holds, at any moment, what it held before or all of `parts`.

    Raises:
        OSError: It could not be written; what it held before is still there.
    """
    # Ranks may write at once, on several hosts too
    partial = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        with naming(path):
            with partial.open("xb") as file:
                file.writelines(parts)
            partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)  # room for others


def cache_folder() -> Path | None:
    """The user's own folder for what can be made again; None where there is no home."""
    root = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(root, "facescale") if os.path.isabs(root) else None


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name the file that is written inside the block: the system says "disk full", but not where.

    Raises:
        OSError: As the system raised it, with the path in its words.
    """
    try:
        yield
    except OSError as error:
        raise OSError(f"{path} could not be written: {error.strerror or error}") from error
