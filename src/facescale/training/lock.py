"""One run folder, one run: a lock file that names the process that writes to the folder."""

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from facescale.distributed import Group
from facescale.files import naming

NAME = ".lock"


class RunFolder:
    """The folder of a run while it is written to; only rank 0 holds the lock."""

    def __init__(self, folder: Path, token: str) -> None:
        self.folder, self._token = folder, token

    def check(self) -> None:
        """Raise FileNotFoundError if the folder was deleted or given to another run.

        Files would otherwise be written to a folder that is gone, and the run would end with exit
        status 0 and without results.
        """
        if self._token and _read(self.folder / NAME) != self._token:
            raise FileNotFoundError(
                f"{self.folder} was deleted or replaced while this run was writing to it"
            )


@contextmanager
def locked(folder: Path, world: Group) -> Iterator[RunFolder]:
    """Make the run folder and hold it for this run. A collective.

    A lock of a process of this host that no longer lives is taken over. A lock of another host is
    respected, since nothing here can tell whether that process lives.

    Raises:
        OSError: The folder cannot be written to, or another run holds it; on every rank alike.
    """
    token = ""
    with world.all_or_none():
        if world.rank == 0:
            folder.mkdir(parents=True, exist_ok=True)
            token = _take(folder / NAME)
    try:
        yield RunFolder(folder, token)
    finally:
        if token and _read(folder / NAME) == token:
            (folder / NAME).unlink(missing_ok=True)


def _take(path: Path) -> str:
    """Write a lock of this process; returns its text."""
    token = json.dumps(
        {"host": socket.gethostname(), "pid": os.getpid(), "start": _start_of("self")}
    )
    for _ in range(2):
        try:
            _write(path, token)
        except FileExistsError:
            held = _read(path)
            if held is not None and _lives(held, path):
                raise OSError(_refusal(held, path)) from None
            path.unlink(missing_ok=True)
        else:
            return token
    raise OSError(f"{path} is taken again and again by other runs; choose another --output")


def _write(path: Path, token: str) -> None:
    """Make the lock file, or raise FileExistsError."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        with naming(path):
            os.write(handle, token.encode())
    except OSError as error:
        path.unlink(missing_ok=True)
        raise OSError(f"{error}; mend that, and go on with --resume") from error
    finally:
        os.close(handle)


def _lives(held: str, path: Path) -> bool:
    """Whether the process that wrote a lock may still be running."""
    try:
        owner = json.loads(held)
        host, pid, start = owner["host"], int(owner["pid"]), owner["start"]
    except (ValueError, TypeError, KeyError):
        return False  # cut off by a crash: nobody holds it
    if host != socket.gethostname():
        return True
    if pid == os.getpid() or not _is_running(pid):
        return False
    return start is None or _start_of(str(pid)) in (None, start)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OverflowError, ValueError):
        return False
    except PermissionError:  # a process of another user
        return True
    return True


def _start_of(process: str) -> str | None:
    """When a process started, in clock ticks since boot: numbers of processes are used again."""
    try:
        return Path("/proc", process, "stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None


def _refusal(held: str, path: Path) -> str:
    owner = json.loads(held)
    return (
        f"{path.parent} is in use by process {owner['pid']} on {owner['host']}; wait for that run, "
        f"choose another --output, or delete {path} if the process no longer exists"
    )


def _read(path: Path) -> str | None:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return None
