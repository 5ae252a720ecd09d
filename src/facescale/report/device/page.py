"""The page of `facescale bench device`, as HTML and as Markdown with PNG files beside it."""

from pathlib import Path

from facescale.report.device.gpu_rows import COMMAND, gpu_tables, record_of
from facescale.report.device.plots import figures
from facescale.report.device.results import Results
from facescale.report.device.tables import phase_tables, phases_table
from facescale.report.device.targets import targets_table
from facescale.report.page import write_pages
from facescale.report.record import load
from facescale.report.tables import PUBLISHED_NOTE


def write_device_page(results: Results, output: Path) -> list[Path]:
    """Write `device.html`, `device.md` and their plots into `output`; returns the two pages.

    Where a GPU was measured, `results.json` gets the rows of the published report in the form of
    `facescale bench report`.

    Raises:
        ValueError: A row has no figure of a name, or one of another type; or `check_folder`.
    """
    try:
        record = record_of(results)
        tables = [targets_table(results), *gpu_tables(results), *phase_tables(results)]
        drawn = figures(results)
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise ValueError(f"device.json has a row that is damaged: {error!r}") from error
    if record.cells:
        check_folder(output)
    pages = write_pages(
        output,
        "device",
        title=f"What this device can do: {results.device}",
        tables=[*tables, phases_table(results)],
        figures=drawn,
        procedure=_procedure(results),
        fingerprints=[("", results.fingerprint)],
        published=PUBLISHED_NOTE,
    )
    if record.cells:
        record.save(output / "results.json")
    return pages


def check_folder(output: Path) -> None:
    """ValueError where `results.json` of a folder is of `facescale bench report`."""
    path = output / "results.json"
    if path.exists() and any(cell.command != COMMAND for cell in load(path).cells.values()):
        raise ValueError(
            f"{path} is of `facescale bench report` and would be overwritten; pass another --output"
        )


def _procedure(results: Results) -> list[str]:
    settings = results.settings
    clock = "events of CUDA" if results.on_card else "the host's clock"
    said = [
        f"`facescale bench device --device {settings.device} --budget "
        f"{settings.budget_s:g} --sizes {settings.sizes}`. Each phase is a process "
        f"of its own with a share of the time. Times are by {clock}, medians of at least 5 calls "
        "after a warm-up."
    ]
    if not results.on_card:
        said.append("A CPU was measured, so nothing here says anything about a GPU.")
    return said
