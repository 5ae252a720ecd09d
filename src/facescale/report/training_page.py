"""Several training runs side by side: curves, verification, speed and config, on one HTML page."""

from collections.abc import Sequence
from pathlib import Path

from facescale.files import write_whole
from facescale.report.page import environment
from facescale.report.tables import Table
from facescale.report.training_plots import plot_runs
from facescale.report.training_runs import ACCURACY, TrainingRun, all_sets

NONE = "-"


def write_page(runs: Sequence[TrainingRun], output: Path) -> None:
    """Write the page, which needs no other file and no network."""
    page = environment().get_template("runs.html")
    text = page.render(
        title=" and ".join(run.name for run in runs) if len(runs) < 4 else f"{len(runs)} runs",
        tables=[_overview(runs), *_verification(runs), _speed(runs)],
        curves=plot_runs(runs),
        differences=_differences(runs),
    )
    write_whole(output, [text.encode()])


def _overview(runs: Sequence[TrainingRun]) -> Table:
    table = Table("Runs", ["run", "state", "step", "epochs", "last loss", "folder"])
    for run in runs:
        epochs, losses = run.series("epoch"), run.series("loss")
        table.rows.append(
            [
                run.name,
                run.state,
                f"{run.step:,}",
                f"{epochs[-1][1]:.2f}" if epochs else NONE,
                f"{losses[-1][1]:.4f}" if losses else NONE,
                str(run.folder),
            ]
        )
    return table


def _verification(runs: Sequence[TrainingRun]) -> list[Table]:
    """A table a set: the highest accuracy and the last figures of each run."""
    tables = []
    for name in all_sets(runs):
        columns = ["run", "best accuracy", "at step", "last accuracy", "TAR@FAR 1e-3"]
        table = Table(f"Verification on {name}", [*columns, "AUC", "EER", "XNorm"])
        for run in runs:
            accuracies = run.series(f"{name}{ACCURACY}")
            if not accuracies:
                table.rows.append([run.name, *[NONE] * (len(table.columns) - 1)])
                continue
            best = max(accuracies, key=lambda point: point[1])
            table.rows.append(
                [
                    run.name,
                    f"{100 * best[1]:.2f} %",
                    f"{best[0]:,}",
                    f"{100 * accuracies[-1][1]:.2f} %",
                    _last(run, f"{name}/tar", 100, "{:.2f} %"),
                    _last(run, f"{name}/auc", 1, "{:.4f}"),
                    _last(run, f"{name}/eer", 100, "{:.2f} %"),
                    _last(run, f"{name}/xnorm", 1, "{:.2f}"),
                ]
            )
        tables.append(table)
    return tables


def _last(run: TrainingRun, key: str, factor: float, form: str) -> str:
    points = run.series(key)
    return form.format(factor * points[-1][1]) if points else NONE


def _speed(runs: Sequence[TrainingRun]) -> Table:
    columns = ["run", "images/s, median", "of the first run", "waited for images, s"]
    table = Table("Speed and memory", [*columns, "peak memory, GiB", "sent a step, MiB"])
    first = runs[0].rate
    for run in runs:
        table.rows.append(
            [
                run.name,
                NONE if run.rate is None else f"{run.rate:,.1f}",
                f"{run.rate / first:.2f}" if run.rate is not None and first else NONE,
                _last(run, "wait_s", 1, "{:.1f}"),
                _last(run, "peak_gib", 1, "{:.2f}"),
                _last(run, "sent_mib", 1, "{:.2f}"),
            ]
        )
    table.notes = ["The median leaves out the first record of a run, which has its start in it."]
    return table


def _differences(runs: Sequence[TrainingRun]) -> Table:
    """The options that are not alike in all runs."""
    table = Table("Config", ["option", *(run.name for run in runs)])
    for key in dict.fromkeys(key for run in runs for key in run.config):
        values = [run.config.get(key, NONE) for run in runs]
        if len(set(values)) > 1:
            table.rows.append([key, *(value or "null" for value in values)])
    without = [run.name for run in runs if not run.config]
    if without:
        table.notes.append(f"Without config.yaml: {', '.join(without)}.")
    if not table.rows:
        table.notes.append("All options are alike.")
    return table
