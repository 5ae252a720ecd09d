"""The folder that a data set is written to. It appears whole, and a killed process can go on.

Files are written to `OUT.partial`, which becomes `OUT` at the end. `made.json` in it says what is
made of what, and after which image the files had which sizes.
"""

import fcntl
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from facescale.files import naming, write_whole

JOURNAL, ENTRIES = "made.json", ".entries"
_LOCK = ".lock"
_WORKING = (_LOCK, ENTRIES)  # files that a complete set does not need
_MAX_JOURNAL = 2**20

Plan = dict[str, str | int | None]
"""What decides the content of a set; two processes with the same plan write the same files."""


@dataclass(frozen=True)
class Progress:
    """How far the work has come.

    Attributes:
        read: Images of the source that are dealt with.
        written: Those of them that were written; the others were passed over.
        digest: Of what was written.
        mark: What the writer needs to go on from here.
        complete: Whether the set is finished and verified.
    """

    read: int = 0
    written: int = 0
    digest: str = "0"
    mark: dict[str, int] = field(default_factory=dict)
    complete: bool = False


class Output:
    """The folder of a set while it is written to; only one process can hold it.

    Attributes:
        folder: Where the files go.
        progress: As the journal has it; new sets begin at 0.
    """

    def __init__(self, out: str | Path, plan: Plan) -> None:
        """Make or take over the folder.

        Raises:
            FileExistsError: `out` holds something else.
            ValueError: `OUT.partial` was begun with another plan, or another process writes to it.
            OSError: It cannot be written.
        """
        # A folder cannot take the place of a link, only that of what it leads to.
        self.out = Path(out).resolve() if Path(out).is_symlink() else Path(out)
        self._plan = plan
        self.progress, self._lock = Progress(), -1
        if self.out.exists() and not (self.out.is_dir() and not any(self.out.iterdir())):
            made = _read(self.out / JOURNAL, plan) if (self.out / JOURNAL).exists() else None
            if made is None or not made.complete:
                raise FileExistsError(f"{out} exists already; choose another folder, or remove it")
            self.folder, self.progress = self.out, made
            return
        self.folder = self.out.with_name(f"{self.out.name}.partial")
        with naming(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.folder / _LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
        try:
            self._take_over()
        except BaseException:
            self.close()
            raise

    def _take_over(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"another process writes to {self.folder}; wait for it") from error
        path = self.folder / JOURNAL
        if not path.exists():
            others = [entry.name for entry in self.folder.iterdir() if entry.name != _LOCK]
            if others:
                raise FileExistsError(f"{self.folder} holds {others[0]}; remove the folder")
            self.keep(self.progress)
            return
        kept = _read(path, self._plan)
        if kept is None:
            raise ValueError(
                f"{self.folder} was begun from another source or with other options; repeat the "
                "command that began it, or remove the folder"
            )
        self.progress = kept
        if kept.complete:  # the process was killed before the folder got its name
            self.finish(kept)

    def keep(self, progress: Progress) -> None:
        """Write down how far the work has come; files have been synced before."""
        self.progress = progress
        text = json.dumps({"plan": self._plan, **asdict(progress)}, indent=1)
        write_whole(self.folder / JOURNAL, [text.encode()])

    def finish(self, progress: Progress) -> None:
        """Let the set appear under its name."""
        self.keep(progress)
        with naming(self.out):
            for name in _WORKING:
                (self.folder / name).unlink(missing_ok=True)
            self.folder.rename(self.out)
        self.folder = self.out

    def close(self) -> None:
        """Let others have the folder."""
        if self._lock >= 0:
            os.close(self._lock)
        self._lock = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _read(path: Path, plan: Plan) -> Progress | None:
    """The progress in a journal; None where it is of another plan."""
    try:
        with path.open("rb") as file:
            values: dict[str, Any] = json.loads(file.read(_MAX_JOURNAL))
        own = values.pop("plan")
        own.pop("on_error", None)  # of earlier versions
        progress = Progress(**values)
        numbers = [progress.read, progress.written, *progress.mark.values()]
        if not all(isinstance(number, int) and number >= 0 for number in numbers):
            raise ValueError("a number is negative")
        int(progress.digest, 16)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged; remove {path.parent} and begin anew") from error
    return progress if own == plan else None


class GrowingFile:
    """A file that is appended to, and cut to what it was when work goes on from a mark."""

    def __init__(self, path: Path, size: int) -> None:
        """Open `path`, cut to `size` bytes; OSError where it has fewer."""
        self.path = path
        with naming(path):
            self.file: BinaryIO = path.open("r+b" if size else "w+b")
            if os.fstat(self.file.fileno()).st_size < size:
                self.file.close()
                raise OSError("it is shorter than it was; remove its folder and begin anew")
            self.file.truncate(size)
            self.file.seek(size)
        self.size = size

    def write(self, data: bytes | memoryview) -> None:
        """Append."""
        with naming(self.path):
            self.file.write(data)
        self.size += len(data)

    def sync(self) -> int:
        """Bring everything to the disk; returns the size."""
        with naming(self.path):
            self.file.flush()
            os.fsync(self.file.fileno())
        return self.size

    def close(self) -> None:
        """Write what is left."""
        with naming(self.path):
            self.file.close()
