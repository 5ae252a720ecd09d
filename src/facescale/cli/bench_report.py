"""`facescale bench report`: the report's tables on this machine, written up."""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from facescale.cli.ending import exit_on_signals
from facescale.cli.measured import measured_device
from facescale.cli.parser import Parser
from facescale.cli.terminal import escape, say
from facescale.cli.values import convert

if TYPE_CHECKING:
    from facescale.report.settings import Settings

USAGE = "facescale bench report [options]"


def add_options(parser: Parser) -> None:
    """What the command understands."""
    add = parser.add_argument
    add("--output", type=str, default="runs/report", help="folder of results.json and the pages")
    add("--devices", type=str, default="1,4,8", help="numbers of devices, with commas between")
    add("--cases", type=str, help="emore_r100/partial_fc,*/64 or none; all when not given")
    add("--runs", type=int, default=5, help="runs of a case; the figure is their median")
    add(
        "--iterations", type=str, default="150",
        help="of a run; the last two thirds count; 50,emore_y1=150 for a network of its own",
    )  # fmt: skip
    add("--pause_s", type=float, default=20.0, help="between runs")
    add(
        "--batch", type=str,
        help="samples of a device in place of the report's 64 and 256: 8 or 8,emore_y1=64",
    )  # fmt: skip
    add("--emore", type=str, help="folder of face_emore; synthetic data when not given")
    add("--glint360k", type=str, help="folder of glint360k; synthetic data when not given")
    add("--memory", type=str, help="limits of a rank for the searches: 4GiB,8GiB; a CPU needs them")
    add("--precision", type=str, help="of the search for the most identities")
    add("--search_precision", type=float, default=0.04, help="relative gap at which it stops")
    add("--device", choices=["auto", "cpu", "cuda"], default="auto")
    add("--threads", type=int, help="of a rank on the CPU; cores / most devices when not given")
    add("--timeout_s", type=float, default=3600.0, help="after which a run is ended")
    add("--retry", action="store_true", help="measure cells again that failed in an earlier call")
    add("--logs", nargs="+", help="logs of other systems: emore_r100/partial_fc/64@8=FOLDER/*.log")
    add("--compare", nargs=2, help="two results.json to lay side by side; nothing is run")


def run(chosen: argparse.Namespace) -> None:
    """Run what is missing and write the pages anew, or compare two reports."""
    if chosen.compare is not None:
        _compare(chosen)
    else:
        _run_report(chosen)


def _run_report(chosen: argparse.Namespace) -> None:
    settings = _settings(chosen)
    from facescale.distributed import Group
    from facescale.report.cases import select
    from facescale.report.old_logs import read_cells
    from facescale.report.page import write_report
    from facescale.report.runs import run_matrix
    from facescale.training.lock import locked

    output = Path(chosen.output)
    cases = select([] if chosen.cases == "none" else (chosen.cases or "*").split(","))
    logs = [read_cells(entry) for entry in chosen.logs or ()]
    with exit_on_signals(), locked(output, Group()):
        record = run_matrix(
            cases, settings, output, lambda text: say(escape(text)), retry=chosen.retry
        )
        for found in logs:
            for system, cells in found.items():
                record.systems.setdefault(system, {}).update(cells)
        record.save(output / "results.json")
        for path in write_report(record, output):
            say(f"[bold]{escape(str(path))}[/]")


def _settings(chosen: argparse.Namespace) -> "Settings":
    devices = tuple(_whole_numbers("--devices", chosen.devices))
    from facescale.config.fields import fields
    from facescale.plan.units import parse_bytes
    from facescale.report.cases import NETWORKS
    from facescale.report.settings import Settings

    precision, threads = chosen.precision, chosen.threads
    if precision is not None:
        convert(precision, fields()["train.precision"], "--precision")
    if threads is None:
        threads = max(1, (os.cpu_count() or 1) // max(1, *devices))
    batch, batches = _by_network("--batch", chosen.batch or "")
    iterations, lengths = _by_network("--iterations", chosen.iterations)
    given = {"batch": batches, "iterations": lengths}
    own = {
        network: {what: numbers[network] for what, numbers in given.items() if network in numbers}
        for network in NETWORKS
        if network in batches | lengths
    }
    data = {network.dataset: getattr(chosen, network.dataset) for network in NETWORKS.values()}
    return Settings(
        devices=devices,
        runs=chosen.runs,
        iterations=Settings.iterations if iterations is None else iterations,
        pause_s=chosen.pause_s,
        batch=batch,
        own=own,
        data={name: path for name, path in data.items() if path is not None},
        memory=tuple(parse_bytes(part) for part in (chosen.memory or "").split(",") if part),
        device=measured_device(chosen.device),
        threads=threads,
        precision=precision,
        search_precision=chosen.search_precision,
        timeout_s=chosen.timeout_s,
    )


def _by_network(option: str, text: str) -> tuple[int | None, dict[str, int]]:
    """The number for all networks, and those for single ones: 8,emore_y1=64."""
    from facescale.report.cases import NETWORKS

    common, own = None, {}
    for part in filter(None, text.split(",")):
        name, equals, number = part.rpartition("=")
        if equals and name not in NETWORKS:
            raise ValueError(f"{option} names {name!r}; the networks are {', '.join(NETWORKS)}")
        try:
            found = int(number)
        except ValueError:
            raise ValueError(f"{option} is {text!r}; write 8, or 8,emore_y1=64") from None
        if found < 1:
            raise ValueError(f"{option} must be at least 1, got {found}")
        if name in own or (not equals and common is not None):
            raise ValueError(f"{option} is {text!r}, two numbers for the same; write one of them")
        if equals:
            own[name] = found
        else:
            common = found
    return common, own


def _whole_numbers(option: str, text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"{option} is {text!r}; write numbers with commas: 1,4,8") from None


def _compare(chosen: argparse.Namespace) -> None:
    """Two benchmarks side by side, as pages and on the screen."""
    from facescale.report.page import write_comparison

    first, second = (Path(path) for path in chosen.compare)
    for path in write_comparison(first, second, Path(chosen.output)):
        if path.suffix == ".md":
            print(path.read_text())
        say(f"[bold]{escape(str(path))}[/]")
