"""Log files of OneFlow's and InsightFace's trainers, read as DLPerf read them.

| system | line | readings that count |
|---|---|---|
| OneFlow | `train: iter 30, loss 9.1, throughput: 245.0` | after iter 5: 20th to 120th |
| MXNet, ArcFace | `Speed: 241.8 samples/sec` (of 20 batches each) | second to sixth |
| MXNet, Partial FC | `Iter:30 Rank:1.2 it/sec Total:223.1 it/sec` | from the 20th on |
| arcface_torch | `Training: ...-Speed 5136.2 samples/sec ...` | all but the first fifth |

The unit is samples/s in all of them, whatever the line says. Of arcface_torch, which DLPerf did
not measure, the first lines are left out as warm-up. facescale writes its lines too.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from glob import glob
from pathlib import Path

from facescale.report.cases import MATRIX
from facescale.report.record import DONE, Cell, Run

_NUMBER = r"[0-9]+(?:\.[0-9]+)?(?:e[+-]?[0-9]+)?"


@dataclass(frozen=True)
class _Format:
    """How one system logs, and which of its readings count."""

    system: str
    line: re.Pattern[str]
    """Group "rate", and "iter" where it says."""
    counted: Callable[[Sequence[float]], Sequence[float]]
    after: int = -1
    """Iterations that are not even read."""


def _pattern(text: str) -> re.Pattern[str]:
    return re.compile(text.replace("RATE", f"(?P<rate>{_NUMBER})"))


_FORMATS = (
    _Format(
        "OneFlow",
        _pattern(r"train: iter (?P<iter>\d+),.*throughput: RATE"),
        lambda rates: rates[19:120],
        after=5,
    ),
    _Format(
        "MXNet",
        _pattern(r"Iter:\s*(?P<iter>\d+).*Total:\s*RATE it/sec"),
        lambda rates: rates[19:],
    ),
    _Format(
        "arcface_torch",
        _pattern(r"Training: .*Speed:? RATE samples/sec"),
        lambda rates: rates[len(rates) // 5 :],
    ),
    _Format("MXNet", _pattern(r"Speed: RATE samples/sec"), lambda rates: rates[1:6]),
)


def read_log(path: Path) -> tuple[str, Run]:
    """The system that wrote a log, and the readings that count.

    Raises:
        FileNotFoundError: No such file.
        ValueError: No line of any system, or too few.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file")
    lines = path.read_text(errors="replace").splitlines()
    for form in _FORMATS:
        found = [match for line in lines if (match := form.line.search(line))]
        if not found:
            continue
        rates = [
            float(match["rate"])
            for match in found
            if form.after < 0 or int(match["iter"]) > form.after
        ]
        counted = list(form.counted(rates))
        if not counted:
            raise ValueError(
                f"{path}: {len(found)} lines of {form.system} are too few, all are warm-up"
            )
        return form.system, Run(DONE, rates=counted)
    raise ValueError(
        f"{path} has no line of OneFlow (train: iter), MXNet (Speed:, Iter:) or arcface_torch "
        "(Training: ... Speed)"
    )


def read_cells(entry: str) -> dict[str, dict[str, Cell]]:
    """Cells by system of `CASE@DEVICES=PATTERN`: one cell a system, one run a file.

    Raises:
        ValueError: Not of that form, an unknown case, or a file that is no such log.
        FileNotFoundError: No file matches.
    """
    match = re.fullmatch(r"([^@=]+)@(\d+)=(.+)", entry)
    if match is None:
        raise ValueError(f"--logs {entry!r}: write CASE@DEVICES=FILES, such as {_EXAMPLE}")
    case, devices, pattern = match[1], int(match[2]), match[3]
    if case not in {known.name for known in MATRIX}:
        raise ValueError(f"--logs {entry!r}: no case {case!r}, but for example {MATRIX[0].name}")
    paths = sorted(glob(pattern))
    if not paths:
        raise FileNotFoundError(f"no file matches {pattern}")
    cells: dict[str, dict[str, Cell]] = {}
    for path in paths:
        system, run = read_log(Path(path))
        name = f"{case} on {devices}"
        cell = cells.setdefault(system, {}).setdefault(name, Cell(case, devices, command=pattern))
        cell.runs.append(run)
    return cells


_EXAMPLE = "emore_r100/partial_fc/64@8=logs/1n8g/*.log"
