"""`facescale bench`: the report's tables on this machine, and the single trials behind them."""

import os
import signal
import sys
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace
from rich.console import Console

from facescale.cli import bench_page, kernels
from facescale.cli.configured import add_config_options, preset_first, read_config
from facescale.distributed import device_type
from facescale.plan.units import parse_bytes
from facescale.report.cases import NETWORKS, select
from facescale.report.old_logs import read_cells
from facescale.report.page import write_comparison, write_report
from facescale.report.runs import run_matrix
from facescale.report.settings import Settings
from facescale.report.trial import run_trial

HELP = "measure speed and limits as the report did"


def add_options(parser: ArgumentParser) -> None:
    """The commands below `bench`."""
    commands = parser.add_subcommands()
    report = ArgumentParser(exit_on_error=False, allow_abbrev=False)
    commands.add_subcommand("report", report, help="run the report's tables and write them up")
    _add_report_options(report)
    page = ArgumentParser(exit_on_error=False, allow_abbrev=False)
    commands.add_subcommand("page", page, help=bench_page.HELP)
    bench_page.add_options(page)
    case = ArgumentParser(exit_on_error=False, allow_abbrev=False)
    case.add_argument("--output", type=str, required=True, help="folder for metrics.jsonl")
    case.add_argument("--memory", type=str, help="that a rank on the CPU may ask for: 4GiB")
    add_config_options(case)
    commands.add_subcommand("case", case, help="one trial: steps and their rates, nothing saved")
    timing = ArgumentParser(exit_on_error=False, allow_abbrev=False)
    commands.add_subcommand("kernels", timing, help=kernels.HELP)
    kernels.add_options(timing)


def _add_report_options(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("--output", type=str, default="runs/report", help="folder of results.json and the pages")
    add("--devices", type=str, default="1,4,8", help="numbers of devices, with commas between")
    add("--cases", type=str, help="emore_r100/partial_fc,*/64 or none; all when not given")
    add("--runs", type=int, default=5, help="runs of a case; the figure is their median")
    add("--iterations", type=int, default=150, help="of a run; the last two thirds count")
    add("--pause_s", type=float, default=20.0, help="between runs")
    add("--batch", type=int, help="samples of a device in place of the report's 64 and 256")
    add("--emore", type=str, help="folder of face_emore; synthetic data when not given")
    add("--glint360k", type=str, help="folder of glint360k; synthetic data when not given")
    add("--memory", type=str, help="limits of a rank for the searches on the CPU: 4GiB,8GiB")
    add("--precision", type=str, help="of the search for the most identities")
    add("--search_precision", type=float, default=0.04, help="relative gap at which it stops")
    add("--device", choices=["auto", "cpu", "cuda"], default="auto")
    add("--threads", type=int, help="of a rank on the CPU; cores / most devices when not given")
    add("--timeout_s", type=float, default=3600.0, help="after which a run is ended")
    add("--logs", nargs="+", help="logs of other systems: emore_r100/partial_fc/64@8=FOLDER/*.log")
    add("--compare", nargs=2, help="two results.json to lay side by side; nothing is run")


def layered(chosen: Namespace, given: list[str]) -> list[str]:
    """For a trial the preset's YAML first, so that options override it."""
    if chosen.subcommand != "case":
        return given
    return preset_first(["bench", "case"], chosen.case.preset, given[2:])


def run(chosen: Namespace) -> None:
    """Do what was chosen below `bench`."""
    if chosen.subcommand == "kernels":
        kernels.run(chosen.kernels)
    elif chosen.subcommand == "case":
        _run_case(chosen.case)
    elif chosen.subcommand == "page":
        bench_page.run(chosen.page)
    elif chosen.report.compare is not None:
        _compare(chosen.report)
    else:
        _run_report(chosen.report)


def _run_case(chosen: Namespace) -> None:
    run_trial(
        read_config(chosen),
        Path(chosen.output),
        None if chosen.memory is None else parse_bytes(chosen.memory),
    )


def _run_report(chosen: Namespace) -> None:
    """Run what is missing, then write the pages anew."""
    # Else SIGTERM would end this process alone, and the trial that it waits for would run on.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    terminal = Console(highlight=False)
    output = Path(chosen.output)
    names = [] if chosen.cases == "none" else (chosen.cases or "*").split(",")
    record = run_matrix(select(names), _settings(chosen), output, terminal.print)
    for entry in chosen.logs or ():
        for system, cells in read_cells(entry).items():
            record.systems.setdefault(system, {}).update(cells)
    record.save(output / "results.json")
    for path in write_report(record, output):
        terminal.print(f"[bold]{path}[/]")


def _settings(chosen: Namespace) -> Settings:
    devices = tuple(_whole_numbers("--devices", chosen.devices))
    data = {network.dataset: chosen[network.dataset] for network in NETWORKS.values()}
    return Settings(
        devices=devices,
        runs=chosen.runs,
        iterations=chosen.iterations,
        pause_s=chosen.pause_s,
        batch=chosen.batch,
        data={name: path for name, path in data.items() if path is not None},
        memory=tuple(parse_bytes(part) for part in (chosen.memory or "").split(",") if part),
        device=device_type(chosen.device),
        threads=chosen.threads or max(1, (os.cpu_count() or 1) // max(devices)),
        precision=chosen.precision,
        search_precision=chosen.search_precision,
        timeout_s=chosen.timeout_s,
    )


def _whole_numbers(option: str, text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"{option} is {text!r}; write numbers with commas: 1,4,8") from None


def _compare(chosen: Namespace) -> None:
    """Two benchmarks side by side, as pages and on the screen."""
    first, second = (Path(path) for path in chosen.compare)
    for path in write_comparison(first, second, Path(chosen.output)):
        if path.suffix == ".md":
            Console(highlight=False).print(path.read_text(), soft_wrap=True)
        Console(highlight=False).print(f"[bold]{path}[/]")
