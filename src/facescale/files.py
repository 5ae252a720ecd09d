"""Atomic writes, the cache folder, errors that name the file, and names that may be shown."""

import hashlib
import logging
import os
import secrets
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


def write_whole(path: Path, parts: Iterable[bytes | memoryview]) -> None:
    """Write `path` atomically: at any moment it has its old content or all of `parts`.

    Raises:
        OSError: It could not be written; its old content is still there.
    """
    # ranks may write at the same time, also from several hosts
    partial = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        with naming(path):
            with partial.open("xb") as file:
                file.writelines(parts)
            partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)  # after a failure it would take space


def cache_folder() -> Path | None:
    """The user's folder for files that can be made again; None if there is no home."""
    root = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(root, "facescale") if os.path.isabs(root) else None


def require_regular(path: Path) -> None:
    """Raise OSError where `path` cannot be opened, ValueError where it is not a regular file."""
    if not stat.S_ISREG(path.stat().st_mode):  # a pipe would wait forever
        raise ValueError(f"{path} is not a regular file")
    with path.open("rb"):
        pass


def shortest_names(paths: Sequence[Path]) -> list[str]:
    """The shortest end of each path that no other path has; the whole path where two are alike."""
    names = []
    for path in paths:
        for length in range(1, len(path.parts) + 1):
            name = "/".join(path.parts[-length:])
            if sum("/".join(other.parts[-length:]) == name for other in paths) == 1:
                break
        names.append(name)
    return names


def checksum(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Add the path to an OSError of the block, since "disk full" comes without one.

    Raises:
        OSError: The error of the block, with the path in its message.
    """
    try:
        yield
    except OSError as error:
        raise OSError(f"{path} could not be written: {error.strerror or error}") from error


def said_of(error: Exception) -> str:
    """The text of an error; of an OSError the path and the reason, without its number."""
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def printable(text: str) -> str:
    r"""`text` with control characters, line breaks too, as escapes such as \x1b.

    Names in files of strangers may hold sequences that move the cursor or hide text on a terminal.
    """
    return "".join(
        one if one.isprintable() else one.encode("unicode_escape").decode() for one in text
    )


class PrintableLines(logging.Formatter):
    """Log messages as `printable` gives them; a traceback below one keeps its lines."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The line of a record."""
        return printable(super().formatMessage(record))
