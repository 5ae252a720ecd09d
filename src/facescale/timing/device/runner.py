"""Runs all phases, each in a process of its own, and writes what they found after each."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from facescale.files import write_whole
from facescale.timing.device import PHASES, Phase

FORMAT = "device 1"
GRACE_S = 15.0
"""Seconds beyond its share after which a phase is ended; it has to start and may be in a step."""
START_S = {"cpu": 3.0, "cuda": 0.0}
"""Seconds that a process takes to start; on CUDA it starts while another phase measures."""
LEAST_S = 1.0
"""A phase that would get less is not begun."""

Say = Callable[[str], None]


def run_phases(
    folder: Path,
    *,
    device: str,
    sizes: str,
    budget_s: float,
    fingerprint: dict[str, Any],
    phases: Sequence[Phase] = PHASES,
    kept: Mapping[str, Any] | None = None,
    say: Say = lambda _: None,
) -> Path:
    """Measure a device for about `budget_s` seconds; returns the file of the results.

    Args:
        folder: Gets `device.json`, and in `phases` the notes and the log of each phase.
        device: "cuda" or "cpu".
        sizes: A name of `SIZES`.
        budget_s: Seconds of all phases together; each shrinks its work to its share.
        fingerprint: Of hardware and software.
        phases: What is measured, in this order.
        kept: Results of other phases, by name, which the file gets too.
        say: Is told of each phase that ends.
    """
    notes = folder / "phases"
    notes.mkdir(parents=True, exist_ok=True)
    path, began = folder / "device.json", time.monotonic()
    results: dict[str, Any] = {
        "format": FORMAT,
        "settings": {"device": device, "sizes": sizes, "budget_s": budget_s},
        "fingerprint": fingerprint,
        "phases": dict(kept or {}),
    }
    waiting = [_Process(phase, notes, device, sizes) for phase in phases]
    try:
        for place, process in enumerate(waiting):
            found = _take_turn(waiting[place:], budget_s - (time.monotonic() - began))
            results["phases"][process.phase.name] = found
            write_whole(path, [json.dumps(results, indent=1).encode()])
            say(f"{process.phase.name}: {_said(found)}")
    finally:
        for process in waiting:
            process.end()
    return path


def _take_turn(waiting: "Sequence[_Process]", left_s: float) -> dict[str, Any]:
    """Run the first of those that wait; what it leaves of its share goes to the others."""
    process, rest = waiting[0], sum(other.share for other in waiting)
    if not process.share:
        return _nothing("not run", process.phase.not_on_cpu)
    starts = START_S[process.device] * sum(other.share > 0 for other in waiting)
    work_s = left_s - starts
    seconds = (left_s if work_s < 0 else work_s) * process.share / rest
    seconds += 0.0 if work_s < 0 else START_S[process.device]
    if seconds < LEAST_S:
        return _nothing("not run", "no time was left for it; pass a larger --budget")
    process.start()
    # Imports take seconds, for which the next phase need not wait. On a CPU they would disturb what
    # is measured.
    if process.device != "cpu" and len(waiting) > 1:
        waiting[1].start()
    return process.finish(seconds)


def _nothing(outcome: str, reason: str) -> dict[str, Any]:
    return {"outcome": outcome, "reason": reason, "seconds": 0.0, "rows": [], "left_out": []}


def _said(found: dict[str, Any]) -> str:
    rows, left_out = len(found["rows"]), len(found["left_out"])
    failed = sum("failure" in row for row in found["rows"])
    words = [f"{found['outcome']} in {found['seconds']:.1f} s", f"{rows} rows"]
    words += [f"{failed} of them failed"] if failed else []
    words += [f"{left_out} left out for want of time"] if left_out else []
    return ", ".join([*words, found["reason"]] if found["reason"] else words)


@dataclass
class _Process:
    """A phase's process, which waits after its imports until it is its turn."""

    phase: Phase
    folder: Path
    device: str
    sizes: str
    process: subprocess.Popen[bytes] | None = None

    @property
    def share(self) -> float:
        """Of the time; 0 if it is not for this device."""
        return 0.0 if self.device == "cpu" and self.phase.not_on_cpu else self.phase.share

    def start(self) -> None:
        """Begin to import, if that has not begun."""
        if self.process is not None:
            return
        phase, file = self.phase, self.folder / f"{self.phase.name}.json"
        file.unlink(missing_ok=True)
        command = [sys.executable, "-m", __package__, phase.module, str(file)]
        with (self.folder / f"{phase.name}.log").open("w") as log:
            self.process = subprocess.Popen(
                [*command, self.device, self.sizes, phase.argument],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # so that what it starts ends with it
            )

    def finish(self, seconds: float) -> dict[str, Any]:
        """Let it work for about so many seconds; returns what it found and how it ended."""
        process, begin, late = self.process, time.monotonic(), False
        assert process is not None
        try:
            until = f"{time.time() + seconds}\n".encode()
            process.communicate(until, timeout=seconds + GRACE_S)
        except subprocess.TimeoutExpired:
            late = True
        self.end()
        found = self._notes()
        if late:
            found["outcome"] = "no end"
            found["reason"] = f"ended after {seconds + GRACE_S:.0f} s"
        elif process.returncode < 0:
            found["outcome"] = f"killed by signal {-process.returncode}"
            found["reason"] = self._last_line()
        elif not found["outcome"]:
            found["outcome"], found["reason"] = "error", self._last_line()
        return found | {"seconds": time.monotonic() - begin}

    def end(self) -> None:
        """End the process and all that it started."""
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def _notes(self) -> dict[str, Any]:
        file = self.folder / f"{self.phase.name}.json"
        if not file.exists():
            return _nothing("", "")
        found: dict[str, Any] = json.loads(file.read_bytes())
        return _nothing("", "") | found

    def _last_line(self) -> str:
        log = (self.folder / f"{self.phase.name}.log").read_text(errors="replace")
        lines = [line.strip() for line in log.splitlines() if line.strip()]
        return lines[-1][:300] if lines else "it printed nothing"
