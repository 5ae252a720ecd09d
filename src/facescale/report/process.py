"""A trial in processes of its own: start, wait, end it if necessary, and read the outcome."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from facescale.plan.limit import OUT_OF_MEMORY
from facescale.report.record import DONE, Run
from facescale.training.metrics import read_metrics
from facescale.training.signals import heard_by

_ENDING = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)


def trial_command(
    preset: str, devices: int, folder: Path, options: Sequence[str], memory: int | None = None
) -> list[str]:
    """The command of a trial, as a user would type it."""
    limit = [] if memory is None else ["--memory", str(memory)]
    return [
        *("torchrun", "--standalone", f"--nproc_per_node={devices}"),
        *("-m", "facescale", "bench", "case", preset, "--output", str(folder), *limit, *options),
    ]


def shown(command: Sequence[str], threads: int) -> str:
    """The command as one line for a shell."""
    return f"OMP_NUM_THREADS={threads} {shlex.join(command)}"


def run_trial_process(
    command: Sequence[str], folder: Path, *, threads: int, counted: int, timeout_s: float
) -> Run:
    """Run a trial and return its outcome.

    Args:
        command: Of `trial_command`; torchrun is that of this Python.
        folder: Folder of the trial's metrics; metrics from before are removed.
        threads: Of a rank, on the CPU.
        counted: Number of the last logged rates that count.
        timeout_s: Seconds after which the processes are ended.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for stale in (folder / "metrics.jsonl", *folder.glob("failure-*.json")):
        stale.unlink(missing_ok=True)
    assert command[0] == "torchrun"
    with (folder / "output.log").open("w") as log:
        process = None
        try:
            with _no_signal():  # it would come before the process has a name here
                process = subprocess.Popen(
                    [sys.executable, "-m", "torch.distributed.run", *command[1:]],
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, "OMP_NUM_THREADS": str(threads)},
                    start_new_session=True,  # so that all ranks can be ended together
                )
            status = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return Run(f"no end in {timeout_s:g} s")
        finally:
            if process is not None:
                _end(process)
    if status != 0:
        return _failure(folder)
    rows = [row for row in read_metrics(folder / "metrics.jsonl") if "images_per_s" in row]
    if not rows:
        return Run("error", reason="it ended well, but metrics.jsonl has no rate")
    return Run(
        DONE,
        rates=[row["images_per_s"] for row in rows[-counted:]],
        peak_gib=max(row["peak_gib"] for row in rows),
    )


@contextmanager
def _no_signal() -> Iterator[None]:
    """Put off signals that would end this process until the block has ended."""
    came: list[int] = []
    with heard_by(lambda number, _: came.append(number), _ENDING):
        yield
    for number in came:
        signal.raise_signal(number)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End torchrun and its ranks if they run: SIGTERM, so that it ends them, then SIGKILL."""
    if process.poll() is not None:
        return
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _failure(folder: Path) -> Run:
    """Why a trial failed: the note of a rank, else the signal that ended one.

    A rank that only says that it lost the others is no reason while there is one for that.
    """
    notes = []
    for path in sorted(folder.glob("failure-*.json")):
        with suppress(ValueError):  # torchrun ended the rank while it wrote
            notes.append(json.loads(path.read_text()))
    lost = [note for note in notes if note["reason"].startswith(ConnectionError.__name__)]
    own = [note for note in notes if note not in lost]
    for note in sorted(own, key=lambda note: note["kind"] != OUT_OF_MEMORY):
        return Run(note["kind"], reason=note["reason"])
    log = (folder / "output.log").read_text(errors="replace")
    if "std::bad_alloc" in log:  # thrown in a thread, it ends the process
        return Run(OUT_OF_MEMORY, reason="std::bad_alloc in a kernel")
    if ended := re.search(r"exitcode\s*:\s*-(\d+)", log):
        return Run(f"killed by signal {ended[1]}", reason="possibly by the system, out of memory")
    for note in lost:
        return Run(note["kind"], reason=note["reason"])
    lines = [line for line in log.splitlines() if line.strip()]
    ours = (line for line in lines if line.startswith("facescale"))
    return Run("error", reason=next(ours, lines[-1] if lines else "it printed nothing"))
