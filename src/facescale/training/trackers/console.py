"""What a run shows: a progress bar in a terminal, plain lines elsewhere, `training.log` always."""

import logging
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from rich.console import Console as Terminal
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from facescale.evaluation.verification import Verification
from facescale.files import PrintableLines, naming, printable
from facescale.training.metrics import speed_line
from facescale.training.trackers.tracker import Run, Tracker, register

LINE = PrintableLines("Training: %(asctime)s-%(message)s")  # arcface_torch's
LOG = logging.getLogger("facescale.training")


class LogFile(logging.FileHandler):
    """A log whose lines that cannot be written raise OSError; logging itself only prints that."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Raise what went wrong, with the file's name."""
        with naming(Path(self.baseFilename)):
            raise


class Lines(logging.StreamHandler[TextIO]):
    """Lines on stdout, until its reader leaves: the run goes on, and the log file has them all."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Write no more to a stream that takes nothing."""
        if isinstance(sys.exc_info()[1], OSError):
            LOG.removeHandler(self)
        else:
            super().handleError(record)


@register("console")
class Console(Tracker):
    """`training.log`, and a bar or lines on stdout.

    Speed lines go to the log file, and to stdout only where there is no bar to show them.
    """

    def __init__(self) -> None:
        self.best: dict[str, float] = {}
        self._handlers: list[logging.Handler] = []
        self._bar: Progress | None = None

    def start(self, run: Run) -> None:
        """Open the log, and show the bar where stdout is a terminal."""
        self._run, self._began = run, time.perf_counter()
        self._handlers = [LogFile(run.output / "training.log", encoding="utf-8")]
        if sys.stdout.isatty():
            self._bar = self._make_bar(run)
            self._bar.start()
        else:
            self._handlers.append(Lines(sys.stdout))
        for handler in self._handlers:
            handler.setFormatter(LINE)
            LOG.addHandler(handler)
        LOG.setLevel(logging.INFO)
        LOG.propagate = False

    def close(self) -> None:
        """Take the bar away and close the log."""
        if self._bar is not None:
            self._bar.stop()
        for handler in self._handlers:
            LOG.removeHandler(handler)
            with suppress(OSError):  # told already: a line that was refused is tried once more
                handler.close()

    def advance(self, step: int) -> None:
        """Move the bar."""
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=step)

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        """The line of arcface_torch, and its figures beside the bar."""
        elapsed = time.perf_counter() - self._began
        done = max(1, step - self._run.step)
        rate, loss, lr = values["images_per_s"], values["loss"], values["lr"]
        left_h = elapsed / done * (self._run.num_steps - step) / 3600
        scale = values.get("grad_scale")
        LOG.info(speed_line(rate, loss, lr, int(values["epoch"]), step, left_h, scale))
        if self._bar is not None:
            figures = (
                f"[cyan]{rate:.0f}[/] images/s  loss [cyan]{loss:.3f}[/]  lr [cyan]{lr:.2g}[/]"
            )
            self._bar.update(self._bar.task_ids[0], figures=figures)

    def text(self, step: int, text: str) -> None:
        """A warning."""
        LOG.warning(text)
        if self._bar is not None:
            self._bar.console.print(escape(printable(text)))

    def verification(self, step: int, name: str, answer: Verification) -> None:
        """The lines of arcface_torch, and one above the bar."""
        self.best[name] = max(self.best.get(name, 0.0), answer.accuracy)
        LOG.info("[%s][%d]XNorm: %f", name, step, answer.xnorm)
        LOG.info(
            "[%s][%d]Accuracy-Flip: %1.5f+-%1.5f", name, step, answer.accuracy, answer.accuracy_std
        )
        LOG.info("[%s][%d]Accuracy-Highest: %1.5f", name, step, self.best[name])
        if self._bar is not None:
            self._bar.console.print(
                f"step {step}: {escape(printable(name))} [bold]{100 * answer.accuracy:.2f} %[/] "
                f"+- {100 * answer.accuracy_std:.2f}, best {100 * self.best[name]:.2f} %"
            )

    def _make_bar(self, run: Run) -> Progress:
        bar = Progress(
            TextColumn("[bold]training"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=Terminal(highlight=False),
            expand=True,
        )
        bar.add_task("training", total=run.num_steps, completed=run.step, figures="")
        return bar
