"""All that a run needs to go on, written whole or not at all.

A checkpoint is a folder `step-00000100`: tensors, each rank its own part, `run.json` for the
numbers, and `SHA256SUMS` (as `sha256sum -c` reads it), by which a damaged one is known. It is
written under another name and renamed when all ranks are done: a folder of that name is complete.
"""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch

from facescale.backbones import Backbone
from facescale.checkpoint import tensors
from facescale.checkpoint.statistics import averaged_statistics
from facescale.distributed import Group
from facescale.head import MarginHead

FORMAT = 2
SUMS = "SHA256SUMS"


def save(
    folder: Path,
    backbone: Backbone,
    optimizer: torch.optim.Optimizer,
    head: MarginHead,
    numbers: dict[str, Any],
    *,
    world: Group,
    keep: int,
) -> Path:
    """Write `folder/step-N` for N = numbers["step"], then drop all older but the last `keep`.

    Changes nothing of what it saves. A collective: every rank calls it. Returns the path of the
    new checkpoint.

    Raises:
        OSError: It could not be written, a full disk for example; on every rank alike. The older
            checkpoints are as they were.
    """
    final = folder / f"step-{numbers['step']:08d}"
    partial = folder / f".{final.name}.partial"
    numbers = {
        "format": FORMAT,
        "ranks": world.size,
        "num_classes": head.num_classes,
        "backbone": backbone.spec,
        **numbers,
    }
    try:
        with world.all_or_none():
            if world.rank == 0:
                _clear(folder)
                partial.mkdir(parents=True)
                (partial / "run.json").write_text(json.dumps(numbers, indent=1))
        with averaged_statistics(backbone, world) as own:
            tensors.write(partial, backbone, optimizer, head, own)
        _sign(partial, world)
        with world.all_or_none():
            if world.rank == 0:
                _put_in_place(partial, final)
                for old in [path for path in checkpoints(folder) if path <= final][:-keep]:
                    shutil.rmtree(old)
    except OSError as error:
        if world.rank == 0:
            shutil.rmtree(partial, ignore_errors=True)  # room for others
        left = checkpoints(folder)
        state = f"the last one is {left[-1].name}" if left else "there is none yet"
        raise OSError(
            f"{final} could not be written: {error}; {state}. Mend that, and go on with --resume"
        ) from error
    return final


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run, oldest first; all were complete once, some may be damaged."""
    return sorted(path for path in folder.glob("step-*") if path.is_dir())


def find(path: Path, world: Group) -> Path:
    """The checkpoint at `path`, or the last one of the run at `path`.

    Raises:
        FileNotFoundError: There is none.
        ValueError: It is damaged.
    """
    if not path.name.startswith("step-"):
        saved = checkpoints(path / "checkpoints")
        if not saved:
            raise FileNotFoundError(f"{path} is neither a checkpoint nor a run that has one")
        path = saved[-1]
    wrong = damage(path, world)
    if wrong is not None:
        raise ValueError(f"{path} is damaged: {wrong}; name another checkpoint")
    return path


def damage(path: Path, world: Group) -> str | None:
    """What is wrong with the files of a checkpoint, or None. Each rank reads its part of them."""
    found = ""
    try:
        lines = (path / SUMS).read_text().removesuffix("\n").split("\n")
        if not lines[-1].endswith("  run.json"):  # the last one that was written
            raise ValueError
        for line in lines[world.rank :: world.size]:
            expected, name = line.split("  ")
            if _checksum(path / name) != expected:
                found = f"{name} differs from its checksum"
                break
    except FileNotFoundError as error:
        found = f"{Path(error.filename).name} is missing"
    except OSError as error:
        found = str(error)
    except ValueError:  # no text, not two words, or cut off
        found = f"{SUMS} is not readable"
    return next((said for said in world.gather_texts(found) if said), None)


def load(
    path: Path,
    backbone: Backbone,
    optimizer: torch.optim.Optimizer,
    head: MarginHead,
    *,
    world: Group,
) -> dict[str, Any]:
    """Fill backbone, optimizer and head in place from a checkpoint; returns its numbers.

    Any number of ranks and of shards may have written it.

    Raises:
        ValueError: The checkpoint is of another format, backbone or number of classes.
    """
    numbers = read_numbers(path)
    if numbers["num_classes"] != head.num_classes:
        raise ValueError(
            f"{path}: has {numbers['num_classes']} classes, but this run has {head.num_classes}; "
            "resume with the data that the run began with"
        )
    if numbers["backbone"] != backbone.spec:
        raise ValueError(
            f"{path}: its backbone is {numbers['backbone']}, but this run's is "
            f"{backbone.spec}; resume with the config that the run began with"
        )
    same_ranks = numbers["ranks"] == world.size
    tensors.read(path, backbone, optimizer, head, same_ranks=same_ranks)
    return numbers


def read_numbers(path: Path) -> dict[str, Any]:
    """The numbers of the checkpoint at `path`; ValueError where it is of another format."""
    numbers: dict[str, Any] = json.loads((path / "run.json").read_text())
    if numbers.get("format") != FORMAT:
        raise ValueError(f"{path}: format {numbers.get('format')}, this version reads {FORMAT}")
    return numbers


def _clear(folder: Path) -> None:
    """Remove what a run that was killed while it wrote has left."""
    for leftover in folder.glob(".step-*"):
        shutil.rmtree(leftover)


def _sign(partial: Path, world: Group) -> None:
    """Write the checksums of all files; each rank reads those that it wrote itself."""
    own = ""
    with world.all_or_none():
        own = _sums(sorted(partial.glob(f"__{world.rank}_*")))
    lines = "".join(world.gather_texts(own))
    with world.all_or_none():
        if world.rank == 0:
            lines += _sums([partial / ".metadata", partial / "run.json"])
            (partial / SUMS).write_text(lines)
            for path in partial.iterdir():
                _sync(path)


def _sums(paths: list[Path]) -> str:
    return "".join(f"{_checksum(path)}  {path.name}\n" for path in paths)


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _put_in_place(partial: Path, final: Path) -> None:
    """Give a complete checkpoint its name; one that had it, a damaged one, goes."""
    old = final.with_name(f".{final.name}.old")
    if final.exists():
        final.rename(old)
    partial.rename(final)
    _sync(final.parent)
    shutil.rmtree(old, ignore_errors=True)


def _sync(path: Path) -> None:
    """Have the disk hold `path` before anything is built on it."""
    handle = os.open(path, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)
