"""`facescale bench device`: what a GPU can do, in phases, as JSON and a page."""

import argparse
from pathlib import Path

from facescale.cli.ending import exit_on_signals
from facescale.cli.measured import measured_device
from facescale.cli.parser import Parser
from facescale.cli.terminal import escape, say

USAGE = "facescale bench device [--budget SECONDS] [--output DIR] [options]"
ABOUT = """
Phases, each a process of its own: ceilings (copy, gather, products), correctness of every kernel,
the head alone, the full step, limits of memory, a profile, the backbone, rank 0 of 8. A phase that
fails says why, and the others go on."""


def add_options(parser: Parser) -> None:
    """What the command understands."""
    add = parser.add_argument
    add("--budget", type=float, default=330.0, metavar="SECONDS", help="of all phases [330]")
    add("--output", default="runs/device", metavar="DIR", help="of device.json and the pages")
    add("--device", choices=["auto", "cpu", "cuda"], default="auto")
    add(
        "--sizes",
        choices=["gpu", "cpu", "tiny"],
        help="of the work; those of the device if not given",
    )
    add(
        "--phases",
        metavar="NAMES",
        help="measure only these anew, and keep the others: ceilings,head",
    )


def run(chosen: argparse.Namespace) -> None:
    """Measure, then write the pages and print their paths."""
    if not 0 < chosen.budget < 1e6:
        raise ValueError(f"--budget is {chosen.budget:g}; give seconds, such as 330")
    device, output = measured_device(chosen.device), Path(chosen.output)
    from facescale.report.device.page import check_folder
    from facescale.report.device.results import kept_phases
    from facescale.report.record import fingerprint
    from facescale.timing.device import PHASES
    from facescale.timing.device.runner import run_phases

    if device == "cuda":
        check_folder(output)
    names = [phase.name for phase in PHASES]
    wanted = names if chosen.phases is None else chosen.phases.split(",")
    if unknown := [name for name in wanted if name not in names]:
        raise ValueError(f"--phases {unknown[0]!r}; there are {', '.join(names)}")
    sizes, here = chosen.sizes or ("gpu" if device == "cuda" else "cpu"), fingerprint()
    kept = {}
    if chosen.phases is not None:
        kept = kept_phases(output / "device.json", wanted, device, sizes, here)
    with exit_on_signals():
        path = run_phases(
            output,
            device=device,
            sizes=sizes,
            budget_s=chosen.budget,
            fingerprint=here,
            phases=[phase for phase in PHASES if phase.name in wanted],
            kept=kept,
            say=lambda text: say(escape(text)),
        )
    say(f"[bold]{escape(str(path))}[/]")
    write_pages(path, path.parent)


def write_pages(path: Path, output: Path) -> None:
    """Write the pages of a device.json, and print their paths."""
    from facescale.report.device.page import write_device_page
    from facescale.report.device.results import load

    for page in write_device_page(load(path), output):
        say(f"[bold]{escape(str(page))}[/]")
