"""`metrics.jsonl`: one JSON object a line, read back by plots and reports."""

import json
import logging
from collections.abc import Mapping
from contextlib import suppress
from typing import IO

from facescale.evaluation.verification import Verification
from facescale.files import naming, write_whole
from facescale.training.metrics import read_metrics
from facescale.training.trackers.tracker import Run, Tracker, register

_log = logging.getLogger("facescale.training")  # shown by the console


@register("jsonl")
class Jsonl(Tracker):
    """Appends to `metrics.jsonl`; each line is flushed at once and has a "step"."""

    _file: IO[str] | None = None

    def start(self, run: Run) -> None:
        """Open for appending; records after `run.step` are of steps that are taken again.

        A file with a damaged line is kept as `metrics.jsonl.damaged`, and a new one begins.
        """
        self._path = run.output / "metrics.jsonl"
        try:
            kept = [row for row in read_metrics(self._path) if row["step"] <= run.step]
        except ValueError as error:
            aside = self._path.with_name("metrics.jsonl.damaged")
            self._path.replace(aside)
            _log.warning("%s; moved to %s, and a new file begins", error, aside)
            kept = []
        write_whole(self._path, (json.dumps(row).encode() + b"\n" for row in kept))
        self._file = self._path.open("a", encoding="utf-8")

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        """Append one record."""
        assert self._file is not None
        with naming(self._path):
            self._file.write(json.dumps({"step": step, **values}) + "\n")
            self._file.flush()

    def verification(self, step: int, name: str, answer: Verification) -> None:
        """Append the figures, with keys such as "lfw/accuracy"."""
        self.numbers(step, answer.metrics(name))

    def close(self) -> None:
        """Write no more."""
        if self._file is not None:
            with suppress(OSError):  # told already: a line that was refused is tried once more
                self._file.close()
