"""Run the matrix, each cell in processes of its own, and continue it after an interruption.

The procedure is DLPerf's: several runs of a cell with pauses between them, 150 iterations each; the
rate of a run is the mean of its last 100 logged rates, and the figure is the median of the runs.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from facescale.report import record as records
from facescale.report.cases import MAX, NETWORKS, Case
from facescale.report.limits import Undecided, search_limit
from facescale.report.process import run_trial_process, shown, trial_command
from facescale.report.record import DONE, Cell, Record, Run
from facescale.report.settings import Settings, counted_of, settings_of

TRIAL_STEPS = 3
"""Steps of a try in a search; the first one has no momentum yet."""
SYNTHETIC_IMAGES = 1_000_000
SMALL_LR = "0.001"
"""Labels are random, so the preset's learning rate could lead to NaN; the speed is the same."""

Say = Callable[[str], None]


def run_matrix(
    cases: Sequence[Case],
    settings: Settings,
    output: Path,
    say: Say = lambda _: None,
    *,
    retry: bool = False,
) -> Record:
    """Run the missing cells of `cases` on each number of devices; saves `output/results.json`.

    Args:
        cases: Those to measure.
        settings: The procedure; that of an interrupted matrix in `output`, if there is one.
        output: Folder of the results.
        say: Called with a line after each trial.
        retry: Whether cells that failed before are measured again. What a search has tried is kept.

    Raises:
        ValueError: `output` holds a matrix that was measured with other settings, or on another
            machine.
    """
    output.mkdir(parents=True, exist_ok=True)
    path = output / "results.json"
    record = _open(path, settings)
    matrix = _Matrix(record, settings, output, say, lambda: record.save(path), retry)
    for case in cases:
        for devices in settings.devices:
            matrix.measure(case, devices)
    record.save(path)
    return record


def _open(path: Path, settings: Settings) -> Record:
    """The record to continue. Only cases, devices and limits of memory may be added."""
    now = settings_of(settings)
    if not path.exists():
        return Record(now, records.fingerprint())
    record = records.load(path)
    known = record.settings["memory"]
    if known[:1] == now["memory"][:1]:  # the largest batches were searched under the first limit
        now["memory"] = record.settings["memory"] = [*dict.fromkeys([*known, *now["memory"]])]
    for name, value in now.items():
        then = record.settings.get(name)
        if then != value and name != "devices":
            raise ValueError(
                f"{path} was measured with {name} {then}, not {value}; "
                "continue with the same settings, or pass another --output"
            )
    record.settings["devices"] = sorted({*record.settings["devices"], *settings.devices})
    return record


@dataclass
class _Matrix:
    """The state of a running matrix."""

    record: Record
    settings: Settings
    output: Path
    say: Say
    save: Callable[[], None]
    retry: bool
    begun: bool = False
    """Whether a trial has been run now; before the first one the record learns where it goes on."""

    def measure(self, case: Case, devices: int) -> None:
        """Measure one cell, or in searches of identities one per limit of memory."""
        if case.searches_identities:
            for memory in self.settings.memory or (None,):
                self._most_identities(case, devices, memory)
            return
        cell = self._cell(case, devices)
        cell.num_classes = NETWORKS[case.network].num_classes
        cell.batch = self._batch(case, cell)
        self.save()  # the result of a search, before the hours of its runs
        if cell.batch:
            self._throughput(case, cell, cell.batch)
        self.save()

    def _cell(self, case: Case, devices: int, memory: int | None = None) -> Cell:
        """What is known of a cell."""
        cell = self.record.cell(case.name, devices, memory)
        if self.retry:
            cell.runs = [run for run in cell.runs if run.outcome == DONE]
        return cell

    def _batch(self, case: Case, cell: Cell) -> int | None:
        """Batch per rank: the case's, or the result of a search."""
        settings = self.settings
        if case.batch != MAX:
            return settings.batch_of(case.network) or case.batch
        if cell.runs or cell.found is not None:
            return cell.found
        if settings.memory:
            cell.memory = settings.memory[0]
        start = settings.batch_of(case.network) or NETWORKS[case.network].batch
        return self._search(case, cell, start, lambda batch: (batch, None))

    def _most_identities(self, case: Case, devices: int, memory: int | None) -> None:
        cell = self._cell(case, devices, memory)
        batch = self.settings.batch_of(case.network) or NETWORKS[case.network].batch
        cell.batch = batch
        if not cell.runs and cell.found is None:
            cell.num_classes = self._search(case, cell, 100_000, lambda count: (batch, count))
        self.save()

    def _search(
        self,
        case: Case,
        cell: Cell,
        start: int,
        sizes: Callable[[int], tuple[int, int | None]],
    ) -> int | None:
        """The largest number that fits; None, and a failed run with the reason, if undecided."""
        if cell.memory is None and self.settings.device != "cuda":
            cell.runs.append(Run("no limit", reason="on the CPU a search needs --memory"))
            return None

        def attempt(number: int) -> Run:
            batch, num_classes = sizes(number)
            options = self._options(case, batch, TRIAL_STEPS, num_classes)
            run = replace(self._trial(case, cell, options, 1), number=number)
            self.say(f"{case.name} on {cell.devices}: {number:,} {run.outcome}")
            return run

        try:
            return search_limit(
                cell,
                attempt,
                start=start,
                precision=self.settings.search_precision,
                save=self.save,
            )
        except Undecided as reason:
            cell.runs.append(Run("error", reason=str(reason)))
            return None

    def _throughput(self, case: Case, cell: Cell, batch: int) -> None:
        """Run what is missing; stop after a failure."""
        iterations = self.settings.iterations_of(case.network)
        options = self._options(case, batch, iterations)
        while not cell.failure and len(cell.runs) < self.settings.runs:
            if cell.runs:
                time.sleep(self.settings.pause_s)
            run = self._trial(case, cell, options, counted_of(iterations))
            cell.runs.append(run)
            self.save()
            figure = f"{run.rate:.2f} samples/s" if run.outcome == DONE else run.reason
            self.say(f"{case.name} on {cell.devices}: {run.outcome}, {figure}")

    def _trial(self, case: Case, cell: Cell, options: list[str], counted: int) -> Run:
        if not self.begun:
            self.record.continue_on_(records.fingerprint())
            self.begun = True
        settings = self.settings
        folder = self.output / "runs" / case.name / str(cell.devices)
        command = trial_command(case.network, cell.devices, folder, options, cell.memory)
        cell.command = shown(command, settings.threads)
        return run_trial_process(
            command,
            folder,
            threads=settings.threads,
            counted=counted,
            timeout_s=settings.timeout_s,
        )

    def _options(
        self, case: Case, batch: int, steps: int, num_classes: int | None = None
    ) -> list[str]:
        """Options of the trainer for a cell."""
        path = self.settings.data.get(NETWORKS[case.network].dataset, "synthetic")
        options = ["--data.path", path if num_classes is None else "synthetic"]
        if options[1] == "synthetic":
            options += ["--data.num_images", str(SYNTHETIC_IMAGES)]
        else:  # it is checked: a figure is one of so many identities
            options += ["--data.num_classes", str(NETWORKS[case.network].num_classes)]
        if num_classes is not None:
            options += ["--data.num_classes", str(num_classes)]
            if self.settings.precision is not None:
                options += ["--train.precision", self.settings.precision]
        options += ["--train.batch_size", str(batch), "--train.steps", str(steps)]
        options += ["--log_every", "1", "--optim.lr", SMALL_LR, "--device", self.settings.device]
        return [*options, *case.options]
