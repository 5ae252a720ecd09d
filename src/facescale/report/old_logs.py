"""Throughput from log files of OneFlow's and InsightFace's trainers, counted as in DLPerf.

| system | line | readings that count |
|---|---|---|
| OneFlow | `train: iter 30, loss 9.1, throughput: 245.0` | after iter 5: 20th to 120th |
| MXNet, ArcFace | `Speed: 241.8 samples/sec` (of 20 batches each) | second to sixth |
| MXNet, Partial FC | `Iter:30 Rank:1.2 it/sec Total:223.1 it/sec` | from the 20th on |
| arcface_torch | `Training: ...-Speed 5136.2 samples/sec ...` | all but the first fifth |

The unit is samples/s in all of them, whatever the line says. DLPerf did not measure arcface_torch;
its first fifth is left out as warm-up. facescale writes lines of arcface_torch's form.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import Any

from facescale.report.cases import MATRIX
from facescale.report.record import DONE, Cell, Run

_INT = "[0-9]{1,15}"
_NUMBER = rf"{_INT}(?:\.{_INT})?(?:e[+-]?[0-9]{{1,2}})?"


@dataclass(frozen=True)
class _Format:
    """How one system logs, and which of its readings count.

    A line is searched for `begin` and, behind it, for `rate`. One pattern with ".*" between them
    would take quadratic time on a long line.
    """

    system: str
    begin: re.Pattern[str]
    """Group 1 is the iteration, if the line has it."""
    rate: re.Pattern[str]
    """Group 1 is the rate."""
    counted: Callable[[Sequence[float]], Sequence[float]]
    after: int = -1
    """Iterations up to this one are not read."""

    def read(self, line: str) -> tuple[int, float] | None:
        """Iteration (0 if the line has none) and rate; None for any other line."""
        begin = self.begin.search(line)
        rate = begin and self.rate.search(line, begin.end())
        if not begin or not rate:
            return None
        return int(begin[1]) if begin.re.groups else 0, float(rate[1])


def _format(system: str, begin: str, rate: str, **counted: Any) -> _Format:
    patterns = (text.replace("INT", f"({_INT})") for text in (begin, rate))
    begins, rates = (re.compile(text.replace("RATE", f"({_NUMBER})")) for text in patterns)
    return _Format(system, begins, rates, **counted)


_FORMATS = (
    _format(
        "OneFlow",
        "train: iter INT,",
        "throughput: RATE",
        counted=lambda rates: rates[19:120],
        after=5,
    ),
    _format("MXNet", r"Iter:\s*+INT", r"Total:\s*+RATE it/sec", counted=lambda rates: rates[19:]),
    _format(
        "arcface_torch",
        "Training: ",
        "Speed:? RATE samples/sec",
        counted=lambda rates: rates[len(rates) // 5 :],
    ),
    _format("MXNet", "", "Speed: RATE samples/sec", counted=lambda rates: rates[1:6]),
)


def read_log(path: Path) -> tuple[str, Run]:
    """The system that wrote a log, and a run of the readings that count.

    Raises:
        FileNotFoundError: No such file.
        ValueError: No line of any system, or only lines of the warm-up.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file")
    lines = path.read_text(errors="replace").splitlines()
    for form in _FORMATS:
        found = [reading for line in lines if (reading := form.read(line))]
        if not found:
            continue
        counted = list(form.counted([rate for step, rate in found if step > form.after]))
        if not counted:
            raise ValueError(
                f"{path}: all {len(found)} lines of {form.system} are warm-up; train for longer"
            )
        return form.system, Run(DONE, rates=counted)
    raise ValueError(
        f"{path} has no line of OneFlow (train: iter), MXNet (Speed:, Iter:) or arcface_torch "
        "(Training: ... Speed)"
    )


def read_cells(entry: str) -> dict[str, dict[str, Cell]]:
    """Cells by system from `CASE@DEVICES=PATTERN`: one cell per system, one run per file.

    Raises:
        ValueError: Another form, an unknown case, or a file that is not such a log.
        FileNotFoundError: No file matches.
    """
    match = re.fullmatch(r"([^@=]+)@(\d+)=(.+)", entry)
    if match is None:
        raise ValueError(f"--logs {entry!r}: write CASE@DEVICES=FILES, such as {_EXAMPLE}")
    case, devices, pattern = match[1], int(match[2]), match[3]
    if case not in {known.name for known in MATRIX if not known.searches_identities}:
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
