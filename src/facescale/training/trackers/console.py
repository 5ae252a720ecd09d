"""What a run shows: a progress bar in a terminal, plain lines elsewhere, files in either case."""

import logging
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console as Terminal
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from facescale.evaluation.verification import Verification
from facescale.training.metrics import MetricsFile, speed_line

LINE = logging.Formatter("Training: %(asctime)s-%(message)s")  # arcface_torch's
LOG = logging.getLogger("facescale.training")


class Console:
    """Reports of one run: `training.log`, `metrics.jsonl`, and a bar or lines. Rank 0 alone speaks.

    Speed lines go to the log file, and to stdout only where there is no bar to show them.
    """

    def __init__(self, output: Path, *, rank: int, step: int, num_steps: int) -> None:
        self.output, self.rank = output, rank
        self.step, self.first_step, self.num_steps = step, step, num_steps
        self.best: dict[str, float] = {}
        self.start = time.perf_counter()
        self._handlers: list[logging.Handler] = []
        self._bar: Progress | None = None

    def __enter__(self) -> Self:
        if self.rank != 0:
            return self
        self._metrics = MetricsFile(self.output / "metrics.jsonl", after_step=self.step)
        self._handlers = [logging.FileHandler(self.output / "training.log")]
        if sys.stdout.isatty():
            self._bar = self._make_bar()
            self._bar.start()
        else:
            self._handlers.append(logging.StreamHandler(sys.stdout))
        for handler in self._handlers:
            handler.setFormatter(LINE)
            LOG.addHandler(handler)
        LOG.setLevel(logging.INFO)
        LOG.propagate = False
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.rank != 0:
            return
        if self._bar is not None:
            self._bar.stop()
        for handler in self._handlers:
            LOG.removeHandler(handler)
            handler.close()
        self._metrics.close()

    def _make_bar(self) -> Progress:
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
        bar.add_task("training", total=self.num_steps, completed=self.step, figures="")
        return bar

    def advance(self) -> None:
        """One step is done."""
        self.step += 1
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=self.step)

    def log(self, row: dict[str, Any]) -> None:
        """The figures of the last steps: step, epoch, loss, lr, images_per_s, maybe grad_scale."""
        if self.rank != 0:
            return
        self._metrics.write(row)
        elapsed = time.perf_counter() - self.start
        done = max(1, self.step - self.first_step)
        line = speed_line(
            row["images_per_s"],
            row["loss"],
            row["lr"],
            int(row["epoch"]),
            row["step"],
            elapsed / done * (self.num_steps - self.step) / 3600,
            row.get("grad_scale"),
        )
        LOG.info(line)
        if self._bar is not None:
            figures = (
                f"[cyan]{row['images_per_s']:.0f}[/] images/s  loss [cyan]{row['loss']:.3f}[/]  "
                f"lr [cyan]{row['lr']:.2g}[/]"
            )
            self._bar.update(self._bar.task_ids[0], figures=figures)

    def warn(self, text: str) -> None:
        """Something that whoever started the run should know."""
        if self.rank != 0:
            return
        LOG.warning(text)
        if self._bar is not None:
            self._bar.console.print(text)

    def verified(self, name: str, answer: Verification) -> None:
        """The figures of a verification set, in the words of arcface_torch."""
        if self.rank != 0:
            return
        self._metrics.write({"step": self.step, **answer.metrics(name)})
        self.best[name] = max(self.best.get(name, 0.0), answer.accuracy)
        LOG.info("[%s][%d]XNorm: %f", name, self.step, answer.xnorm)
        LOG.info(
            "[%s][%d]Accuracy-Flip: %1.5f+-%1.5f",
            name,
            self.step,
            answer.accuracy,
            answer.accuracy_std,
        )
        LOG.info("[%s][%d]Accuracy-Highest: %1.5f", name, self.step, self.best[name])
        if self._bar is not None:
            self._bar.console.print(
                f"step {self.step}: {name} [bold]{100 * answer.accuracy:.2f} %[/] "
                f"+- {100 * answer.accuracy_std:.2f}, best {100 * self.best[name]:.2f} %"
            )
