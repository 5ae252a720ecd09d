"""The results of a benchmark: one JSON file, written after every run and read to continue."""

import json
import os
import platform
import statistics
import subprocess
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

import facescale
from facescale.files import write_whole
from facescale.kernels.cpu.build import missing
from facescale.report.cases import MATRIX, NETWORKS
from facescale.report.checked import built
from facescale.report.settings import Settings, settings_of

FORMAT = 1
DONE = "done"
MACHINE = ("processor", "cores", "gpu", "gpus")
"""Of the fingerprint: what all runs of a record have in common."""
_THEN = ", then "


@dataclass(frozen=True)
class Run:
    """Result of one run."""

    outcome: str
    """`done`, `out of memory`, `killed by signal 9`, `error`, `no end in 3600 s`."""
    rates: list[float] = field(default_factory=list)
    """Samples/s of all ranks, of each counted iteration."""
    peak_gib: float | None = None
    reason: str = ""
    number: int | None = None
    """The number that a search tried: a batch or a number of identities."""

    @property
    def rate(self) -> float:
        """The mean of the logged rates."""
        return statistics.fmean(self.rates)


@dataclass
class Cell:
    """A case on a number of devices."""

    case: str
    devices: int
    batch: int | None = None
    num_classes: int | None = None
    command: str = ""
    memory: int | None = None
    """Limit of a rank, bytes."""
    runs: list[Run] = field(default_factory=list)
    tries: list[Run] = field(default_factory=list)
    """The tries of a search."""
    found: int | None = None
    """The result of a search."""

    @property
    def failure(self) -> str:
        """Why there is no figure; empty if there is one or nothing was tried yet."""
        failed = [run for run in self.runs if run.outcome != DONE]
        if failed:
            return f"{failed[0].outcome}: {failed[0].reason}".rstrip(": ")
        if self.found == 0:
            return "not even 1 fits"
        return ""

    @property
    def rate(self) -> float | None:
        """The median of the runs."""
        if self.failure or not self.runs:
            return None
        return statistics.median(run.rate for run in self.runs)

    @property
    def peak_gib(self) -> float | None:
        """The peak memory of rank 0 over all runs."""
        peaks = [run.peak_gib for run in self.runs if run.peak_gib is not None]
        return max(peaks, default=None)


@dataclass
class Record:
    """All cells, with the settings and the machine that they were measured with."""

    settings: dict[str, Any]
    fingerprint: dict[str, Any]
    cells: dict[str, Cell] = field(default_factory=dict)
    systems: dict[str, dict[str, Cell]] = field(default_factory=dict)
    """Cells of other systems, from their logs."""

    def cell(self, case: str, devices: int, memory: int | None = None) -> Cell:
        """The cell of that name; a new one if there is none."""
        limit = "" if memory is None else f" in {memory / 2**30:g} GiB"
        name = f"{case} on {devices}{limit}"
        return self.cells.setdefault(name, Cell(case, devices, memory=memory))

    def continue_on_(self, now: dict[str, Any]) -> None:
        """Take further runs on the hardware and with the software of the fingerprint `now`.

        The record's own fingerprint then says what has changed: `2.12.0, then 2.13.0`.

        Raises:
            ValueError: It is another machine, whose rates are no runs of the same cells.
        """
        for name, value in now.items():
            known = self.fingerprint.get(name, value)
            if name in MACHINE and known != value:
                raise ValueError(
                    f"the results so far were measured with {name} {known}, and here it is "
                    f"{value}; continue on that machine, or pass another --output"
                )
            if known != value and str(known).split(_THEN)[-1] != str(value):
                self.fingerprint[name] = f"{known}{_THEN}{value}"

    def save(self, path: Path) -> None:
        """Write the file, completely or not at all."""
        text = json.dumps({"format": FORMAT, **asdict(self)}, indent=1)
        write_whole(path, [text.encode()])


def load(path: Path) -> Record:
    """Read what `Record.save` wrote.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Not such a file, or one that was damaged or edited; the text says where.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file; pass the results.json of a benchmark")
    try:
        values = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:  # of UTF-8, too
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise ValueError(f"{path} is not a benchmark's results.json of format {FORMAT}")
    del values["format"]
    try:
        return _checked(values)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _checked(values: dict[str, Any]) -> Record:
    """The record with every value checked: the file may have been edited."""
    record: Record = built(Record, values, "results")
    chosen = {name: value for name, value in record.settings.items() if name != "counted"}
    settings: Settings = built(Settings, chosen, "results.settings")
    record.settings = settings_of(settings)
    for network, own in settings.own.items():
        if network not in NETWORKS or not own.keys() <= {"batch", "iterations"}:
            raise ValueError(f"results.settings.own has {network!r:.60} with {sorted(own)!r:.60}")
    cases = {case.name for case in MATRIX}
    for cells in (record.cells, *record.systems.values()):
        for name, cell in cells.items():
            if cell.case not in cases or not name.startswith(f"{cell.case} on {cell.devices}"):
                raise ValueError(f"cell {name!r:.60} is not of a known case and its devices")
            for run in cell.runs:
                if run.outcome == DONE and not run.rates:
                    raise ValueError(f"cell {name!r} has a run that is done, but has no rates")
    return record


def fingerprint() -> dict[str, Any]:
    """Hardware and software that affect speed."""
    cuda = torch.cuda.is_available()
    return {
        "facescale": facescale.__version__,
        "commit": _commit(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.platform(terse=True),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "cpu_kernels": missing() or "compiled",
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpu": torch.cuda.get_device_name() if cuda else None,
        "gpu_memory_gib": (
            round(torch.cuda.get_device_properties(0).total_memory / 2**30, 1) if cuda else None
        ),
        "gpus": torch.cuda.device_count() if cuda else 0,
        "cuda": torch.version.cuda,
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _commit() -> str | None:
    """Commit of the checkout that has this file; None if there is none.

    An installed copy may lie in the checkout of another project, in its virtual environment.
    """
    try:
        _git("ls-files", "--error-unmatch", Path(__file__).name)
        return _git("rev-parse", "--short", "HEAD")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(*words: str) -> str:
    command = ["git", "-C", str(Path(__file__).parent), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    return done.stdout.strip()
