"""A folder of compiled libraries that no other user can have written.

Loading a library executes it, so folder and files must belong to this user and be writable by
nobody else, and no link is followed. A checksum beside each library shows one that was cut or
damaged, which would end the process with SIGBUS or SIGSEGV once it is loaded.
"""

import contextlib
import fcntl
import hashlib
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

_PARTIAL = "build-"
_POLL_S = 0.05


class UnsafeFolderError(Exception):
    """Why a folder cannot be trusted, with the remedy."""


def private_folder(path: Path) -> Path:
    """Make `path` with mode 0700, whatever the umask, or check one that exists.

    Raises:
        UnsafeFolderError: A link, no folder, another user's, or one that others may write.
        OSError: It cannot be made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        path.mkdir(mode=0o700)
        path.chmod(0o700)  # a umask may have taken away the owner's rights too
    except FileExistsError:
        if reason := _distrust(path, stat.S_ISDIR):
            raise UnsafeFolderError(f"{path} {reason}; remove it") from None
    return path


def is_intact(library: Path) -> bool:
    """Whether `library` and its checksum are there, are this user's alone, and fit each other."""
    checksum = _checksum_path(library)
    try:
        if _distrust(library, stat.S_ISREG) or _distrust(checksum, stat.S_ISREG):
            return False
        return checksum.read_bytes() == _checksum(library.read_bytes())
    except OSError:
        return False


def adopt(part: Path, library: Path) -> None:
    """Move `part`, from the same file system, to `library`, and write its checksum beside it."""
    part.chmod(0o600)
    checksum = part.with_name(f"{part.name}.sum")
    checksum.write_bytes(_checksum(part.read_bytes()))
    checksum.chmod(0o600)
    # Whoever reads between these lines sees what does not fit, and waits for the lock to build.
    checksum.replace(_checksum_path(library))
    part.replace(library)


def remove(library: Path) -> None:
    """Remove a library that is not intact, whatever stands in its place."""
    for path in (library, _checksum_path(library)):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def building(folder: Path, longest_s: float) -> Iterator[Path]:
    """A folder in `folder` for what one process builds, while the others that want to build wait.

    A process that waited for longer than `longest_s` goes on, and so does one whose file system
    has no locks: two may build the same, and do not disturb each other. What a killed process
    left behind is removed.
    """
    with (folder / "lock").open("ab") as lock:
        os.chmod(lock.fileno(), 0o600)
        deadline = time.monotonic() + longest_s
        while not _lock(lock.fileno()) and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        for leftover in folder.glob(f"{_PARTIAL}*"):
            with contextlib.suppress(OSError):
                if time.time() - leftover.lstat().st_mtime > 2 * longest_s:
                    shutil.rmtree(leftover)
        with tempfile.TemporaryDirectory(prefix=_PARTIAL, dir=folder) as own:
            yield Path(own)


def _lock(descriptor: int) -> bool:
    """Whether to go on: the lock is ours, or cannot be had on this file system."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def _distrust(path: Path, is_kind: Callable[[int], bool]) -> str:
    """Why `path` cannot be trusted; empty if it can."""
    status = path.lstat()
    if stat.S_ISLNK(status.st_mode):
        return "is a link"
    if not is_kind(status.st_mode):
        return "is of another kind"
    if status.st_uid != os.geteuid():
        return f"belongs to user {status.st_uid}, not to {os.geteuid()}"
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"has mode {stat.S_IMODE(status.st_mode):04o}, so others may write it"
    return ""


def _checksum_path(library: Path) -> Path:
    return library.with_name(f"{library.name}.sum")


def _checksum(content: bytes) -> bytes:
    return hashlib.sha256(content).hexdigest().encode()
