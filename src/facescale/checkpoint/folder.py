"""Checkpoints of a run: each is written whole or not at all, and executes nothing when it is read.

A checkpoint is a folder `step-00000100`: a safetensors file a rank, `run.json`, and `SHA256SUMS`
(as `sha256sum -c` reads it), by which damage is found. It is written under another name and renamed
when all ranks are done: a folder of that name is complete.
"""

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from facescale.checkpoint import record
from facescale.checkpoint.record import Record, Rows, Run
from facescale.checkpoint.tensors import CENTRES, COUNTS, file_name
from facescale.distributed import Group
from facescale.files import checksum, require_regular, said_of
from facescale.models.tensorfile import Kind, Pieces, encode, kind_of

SUMS = "SHA256SUMS"
OLD_METADATA = ".metadata"
"""A file that only checkpoints of format 2 have."""
_MAX_SUMS = 16 << 20  # bytes; of 100,000 ranks
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Part:
    """What one rank writes."""

    shared: Mapping[str, Tensor]
    """What is alike on all ranks, by name; the first rank writes it."""
    own: Mapping[str, Tensor]
    """What is this rank's alone."""
    centres: Tensor | Pieces
    """Class centres (k, parts, width), as they are stored."""
    first: int | None
    """The first of these rows; None where another rank writes the same ones."""
    finite: bool
    """Whether all of it is finite."""
    counts: Tensor | None = None
    """Draws of each row (k,) int32, where the optimizer needs them."""


def save(
    folder: Path, run: Run, part: Part, *, world: Group, keep: int, best: int | None = None
) -> Path:
    """Write `folder/step-N` for N = run.step, then drop all older ones but the last `keep`.

    The one of step `best` stays too, and where none of those is finite, the last one that is. A
    collective: every rank calls it. Returns the path of the new checkpoint.

    Raises:
        OSError: It could not be written, a full disk for example; on every rank alike. The older
            checkpoints are as they were.
    """
    final = folder / step_name(run.step)
    partial = folder / f".{final.name}.partial"
    try:
        with world.all_or_none():
            if world.rank == 0:
                _clear(folder)
                partial.mkdir(parents=True)
        with world.all_or_none() as said:
            written = _write_part(partial / file_name(world.rank), part, world.rank)
            said.append(json.dumps(written))
        with world.all_or_none():
            if world.rank == 0:
                _sign(partial, run, part.centres, [json.loads(answer) for answer in said])
                _put_in_place(partial, final)
                saved = checkpoints(folder)
                for old in superfluous(saved[: saved.index(final) + 1], keep, best):
                    _remove(old)
    except OSError as error:
        if world.rank == 0:
            shutil.rmtree(partial, ignore_errors=True)  # room for others
        left = checkpoints(folder)
        state = f"the last one is {left[-1].name}" if left else "there is none yet"
        raise OSError(
            f"{final} could not be written: {error}; {state}. Mend that, and go on with --resume"
        ) from error
    return final


def step_name(step: int) -> str:
    """Name of the checkpoint's folder."""
    return f"step-{step:08d}"


def write_parts(partial: Path, run: Run, parts: Sequence[Part]) -> None:
    """Write what several ranks would write, in one process."""
    answers = [
        _write_part(partial / file_name(rank), part, rank) for rank, part in enumerate(parts)
    ]
    _sign(partial, run, parts[0].centres, answers)


def _write_part(path: Path, part: Part, rank: int) -> tuple[str, tuple[int, int] | None, bool]:
    """Write a rank's file; its checksum, which classes it holds, and whether all is finite."""
    tensors: dict[str, Tensor | Pieces] = dict(part.shared) if rank == 0 else {}
    tensors |= {f"own/{name}": value for name, value in part.own.items()}
    rows = None
    if part.first is not None:
        tensors[CENTRES] = part.centres
        tensors |= {} if part.counts is None else {COUNTS: part.counts}
        rows = part.first, part.first + _kind(part.centres).shape[0]
    return _write(path, encode(tensors)), rows, part.finite


def _kind(centres: Tensor | Pieces) -> Kind:
    return centres.kind if isinstance(centres, Pieces) else kind_of(centres)


def _sign(
    partial: Path,
    run: Run,
    centres: Tensor | Pieces,
    answers: Sequence[tuple[str, Sequence[int] | None, bool]],
) -> None:
    """Write `run.json`, and the checksums of all files."""
    rows = sorted(
        (Rows(rank, *held) for rank, (_, held, _) in enumerate(answers) if held is not None),
        key=lambda r: (r.first, r.stop),
    )
    kind = _kind(centres)
    written = Record(
        run,
        ranks=len(answers),
        finite=all(finite for _, _, finite in answers),
        centres=Kind((rows[-1].stop, *kind.shape[1:]), kind.dtype),
        rows=tuple(rows),
    )
    sums = [(digest, file_name(rank)) for rank, (digest, _, _) in enumerate(answers)]
    sums.append((_write(partial / record.NAME, [written.to_json().encode()]), record.NAME))
    lines = "".join(f"{digest}  {name}\n" for digest, name in sums)
    _write(partial / SUMS, [lines.encode()])
    _sync(partial)


def _write(path: Path, parts: Iterable[bytes | memoryview]) -> str:
    """Write a file and have the disk hold it; returns its checksum."""
    digest = hashlib.sha256()
    with path.open("xb") as file:
        for part in parts:
            file.write(part)
            digest.update(part)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def superfluous(saved: list[Path], keep: int, best: int | None = None) -> list[Path]:
    """Those of `saved`, oldest first, that may go.

    The last `keep`, the last finite one and that of step `best` stay.
    """
    older, kept = saved[:-keep], saved[-keep:]
    if best is not None:
        older = [path for path in older if path.name != step_name(best)]
    if not any(map(is_finite, kept)):
        last = next((path for path in reversed(older) if is_finite(path)), None)
        older = [path for path in older if path != last]
    return older


def is_finite(path: Path) -> bool:
    """Whether a checkpoint is readable and says that all its weights are finite."""
    try:
        return record.read(path).finite
    except (OSError, ValueError):
        return False


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run, oldest first; all were complete once, some may be damaged."""
    steps = {
        int(found[1]): path
        for path in folder.glob("step-*")
        if (found := re.fullmatch(r"step-(\d{8,18})", path.name)) and path.is_dir()
    }
    return [path for _, path in sorted(steps.items())]


def find(path: Path, world: Group) -> Path:
    """The checkpoint at `path`, or the last one of the run at `path`.

    Raises:
        FileNotFoundError: There is none.
        ValueError: It is damaged, or of an older format.
    """
    path = last(path)
    wrong = damage(path, world)
    if wrong is not None:
        raise ValueError(f"{path} is damaged: {wrong}; name another checkpoint")
    return path


def last(path: Path) -> Path:
    """The checkpoint at `path`, or the last one of the run at `path`; FileNotFoundError."""
    if path.name.startswith("step-") and path.is_dir():
        return path
    saved = checkpoints(path / "checkpoints")
    if not saved:
        raise FileNotFoundError(f"{path} is neither a checkpoint nor a run that has one")
    return saved[-1]


def damage(path: Path, world: Group) -> str | None:
    """What is wrong with the files of a checkpoint, or None. Each rank reads its part of them.

    Raises:
        ValueError: It is of an older format, on every rank alike.
    """
    if (path / OLD_METADATA).exists():
        raise ValueError(
            f"{path} is of format 2, which is made of pickles: opening one can run code. If you "
            f"trust its source, convert it: facescale unpack {path} --old"
        )
    found = ""
    try:
        for expected, name in _read_sums(path / SUMS)[world.rank :: world.size]:
            require_regular(path / name)
            if (path / name).is_symlink():
                found = f"{name} is a link"
                break
            if checksum(path / name) != expected:
                found = f"{name} differs from its checksum"
                break
    except FileNotFoundError as error:
        found = f"{Path(error.filename).name} is missing"
    except OSError as error:
        found = said_of(error)
    except ValueError as error:
        found = str(error)
    return next((said for said in world.gather_texts(found) if said), None)


def _read_sums(path: Path) -> list[tuple[str, str]]:
    """Checksum and name of each file; ValueError where other files are named than there must be."""
    require_regular(path)
    if path.stat().st_size > _MAX_SUMS:
        raise ValueError(f"{SUMS} is not readable")
    text = path.read_bytes().decode(errors="replace")
    found = re.findall(r"([0-9a-f]{64})  ([a-z0-9.-]+)\n", text)
    names = [file_name(rank) for rank in range(len(found) - 1)] + [record.NAME]
    if [name for _, name in found] != names or len(text) != sum(67 + len(n) for n in names):
        raise ValueError(f"{SUMS} is not readable")
    return found


def _clear(folder: Path) -> None:
    """Remove what a run that was killed while it wrote or removed a checkpoint has left."""
    for leftover in folder.glob(".step-*"):
        _remove(leftover)


def _remove(path: Path) -> None:
    """Remove a checkpoint, which loses its name first: none is ever half there under it.

    What cannot be removed, such as a file on NFS that is being read, is tried again at the next
    save: the run need not end for it.
    """
    try:
        if not path.name.startswith("."):
            path = path.rename(path.with_name(f".{path.name}.old"))
        if path.is_symlink():
            path.unlink()
        else:
            shutil.rmtree(path)
    except OSError as error:
        _log.warning("%s could not be removed: %s", path, said_of(error))


def _put_in_place(partial: Path, final: Path) -> None:
    """Give a complete checkpoint its name; one that had it, a damaged one, goes."""
    old = final.with_name(f".{final.name}.old")
    if final.exists():
        final.rename(old)
    partial.rename(final)
    _sync(final.parent)
    if old.exists():
        _remove(old)


def _sync(path: Path) -> None:
    """Have the disk hold a folder's entries before anything is built on them."""
    handle = os.open(path, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)
