"""`run.json` of a checkpoint: the numbers of the run, and which file holds which class centres.

Every value is checked before anything is made of it: a checkpoint may come from anybody.
"""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from facescale.models.tensorfile import TYPES, Kind

FORMAT = 3
NAME = "run.json"
MAX_BYTES = 16 << 20  # of 100,000 ranks


@dataclass(frozen=True, kw_only=True)
class Run:
    """Where a run was, and what it was."""

    step: int
    """Finished steps."""
    position: int
    """Samples of the stream that are used up."""
    skipped: int
    """Steps that changed nothing since a loss or gradient was not finite."""
    seed: int
    scaler: dict[str, float]
    """State of the gradient scaler; empty without one."""
    people: str | None
    """Fingerprint of the data set's classes and their order; None where it was not known."""
    order: str | None = None
    """What decides the order of the samples beside the seed; None where it was not known."""
    backbone: dict[str, Any]
    """The backbone's spec."""
    optimizer: str
    """Class of the optimizer."""
    subcentres: int = 1
    """Rows of `centres` that a class has."""
    unreadable: list[int] = field(default_factory=list)
    """Numbers of the records that were passed over; checkpoints of before have none."""


@dataclass(frozen=True)
class Rows:
    """Class centres [first, stop), which the file of a rank holds."""

    rank: int
    first: int
    stop: int


@dataclass(frozen=True)
class Record:
    """All that `run.json` says."""

    run: Run
    ranks: int
    """How many ranks wrote it, a file each."""
    finite: bool
    """Whether all weights and class centres are finite numbers."""
    centres: Kind
    """Of all class centres together: (rows, parts, width), as `head.rows` stores them."""
    rows: tuple[Rows, ...]
    """Sorted; they cover all classes, each once."""

    @property
    def num_classes(self) -> int:
        """Identities."""
        return self.centres.shape[0] // self.run.subcentres

    def rows_of(self, classes: range) -> list[Rows]:
        """The files that hold some of these classes."""
        return [r for r in self.rows if max(r.first, classes.start) < min(r.stop, classes.stop)]

    def to_json(self) -> str:
        """What `read` reads."""
        (dtype,) = (name for name, known in TYPES.items() if known == self.centres.dtype)
        centres = {
            "shape": self.centres.shape,
            "dtype": dtype,
            "rows": [[rows.rank, rows.first, rows.stop] for rows in self.rows],
        }
        written = {"ranks": self.ranks, "finite": self.finite, "centres": centres}
        return json.dumps({"format": FORMAT, **asdict(self.run), **written}, indent=1)


def read(folder: Path) -> Record:
    """The record of the checkpoint `folder`.

    Raises:
        OSError: It cannot be read.
        ValueError: It is damaged, ill-typed, or of another format.
    """
    path = folder / NAME
    values = read_json(path)
    try:
        return _record(values)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; OSError, or ValueError where there is none."""
    try:
        with path.open("rb") as file:
            text = file.read(MAX_BYTES + 1)
        if len(text) > MAX_BYTES:
            raise ValueError(f"larger than {MAX_BYTES} bytes")
        values = json.loads(text)
        if not isinstance(values, dict):
            raise ValueError("not a JSON object")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not readable: {error!s:.200}") from error
    return values


def run_from(values: dict[str, Any]) -> Run:
    """The fields of `Run` among `values`; ValueError where one is missing or ill-typed."""
    values = {"subcentres": 1, "unreadable": [], **values}  # older checkpoints do not name them
    return Run(**{name: _checked(values, name) for name in Run.__dataclass_fields__})


def _record(values: dict[str, Any]) -> Record:
    if values.get("format") != FORMAT:
        found = str(values.get("format"))
        raise ValueError(f"format {found:.20}, this version reads {FORMAT}")
    run = run_from(values)
    ranks = _checked(values, "ranks")
    centres = _checked(values, "centres")
    shape = _checked(centres, "shape")
    if shape[0] % run.subcentres:
        raise ValueError(f"{shape[0]} class centres cannot be {run.subcentres} a class")
    kind = Kind(tuple(shape), _dtype(_checked(centres, "dtype")))
    rows = tuple(_rows(row, ranks) for row in _checked(centres, "rows"))
    ends = [0, *(row.stop for row in rows)]
    if [row.first for row in rows] != ends[:-1] or ends[-1] != kind.shape[0]:
        raise ValueError("the rows of its files do not cover all classes once each")
    if len({row.rank for row in rows}) < len(rows):
        raise ValueError("a file is listed twice")
    return Record(run, ranks, _checked(values, "finite"), kind, rows)


def _dtype(name: str) -> torch.dtype:
    if name not in TYPES:
        raise ValueError(f"class centres of unknown type {name:.20}")
    return TYPES[name]


def _rows(values: object, ranks: int) -> Rows:
    if not _is_list(values, _is_count, 3):
        raise ValueError("its list of files is not readable")
    rows = Rows(*values)  # type: ignore[misc]
    if rows.rank >= ranks or rows.first > rows.stop:
        raise ValueError(f"rank {rows.rank} cannot hold classes {rows.first} to {rows.stop}")
    return rows


def _checked(values: dict[str, Any], name: str) -> Any:
    """A value of the expected type, in its range."""
    value = values.get(name)
    if not _CHECKS[name](value):
        raise ValueError(f"{name} is {value!s:.100}")
    return value


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 62


def _is_text(value: object) -> bool:
    return isinstance(value, str) and len(value) < 1000


def _is_number(value: object) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return type(value) is int and abs(value) < 1 << 62


def _is_list(value: object, of: Callable[[object], bool], length: int) -> bool:
    return isinstance(value, list) and len(value) == length and all(map(of, value))


def _is_flat(value: object, of: Callable[[object], bool]) -> bool:
    return isinstance(value, dict) and all(_is_text(k) and of(v) for k, v in value.items())


_CHECKS: dict[str, Callable[[object], bool]] = {
    **dict.fromkeys(("step", "position", "skipped", "seed"), _is_count),
    "scaler": lambda value: _is_flat(value, _is_number),
    **dict.fromkeys(("people", "order"), lambda value: value is None or _is_text(value)),
    "backbone": lambda value: _is_flat(value, lambda v: v is None or _is_text(v) or _is_number(v)),
    **dict.fromkeys(("optimizer", "dtype"), _is_text),
    "ranks": lambda value: _is_count(value) and 1 <= value <= 1_000_000,  # type: ignore[operator]
    "finite": lambda value: isinstance(value, bool),
    "subcentres": lambda value: _is_count(value) and value > 0,  # type: ignore[operator]
    "centres": lambda value: isinstance(value, dict),
    "shape": lambda value: _is_list(value, _is_count, 3),
    "rows": lambda value: isinstance(value, list),
    "unreadable": lambda value: isinstance(value, list) and all(map(_is_count, value)),
}
