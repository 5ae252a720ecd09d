"""`facescale bench kernels`: the head beside the peers' plans and the machine's floor."""

import json
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace
from rich.console import Console
from rich.table import Table

from facescale.benchmark.kernels import CONTENDERS, HeadCase, HeadTimes, as_record, time_heads

HELP = "time the head beside the peers' plans of work"


def add_options(parser: ArgumentParser) -> None:
    """What the command understands."""
    add = parser.add_argument
    add("--heads", type=str, default="85742@1,360232@0.1", help="identities@rate, commas between")
    add("--batch", type=int, default=64)
    add("--rounds", type=int, default=7, help="steps of each contender, in turn")
    add("--output", type=str, help="JSON of every raw figure")


def run(chosen: Namespace) -> None:
    """Time every case, show a table, and write the raw figures down."""
    cases = [_parse(text, chosen.batch) for text in chosen.heads.split(",")]
    terminal = Console(highlight=False)
    times = [time_heads(case, chosen.rounds) for case in cases]
    for case in times:
        terminal.print(_table(case))
    if chosen.output is not None:
        Path(chosen.output).write_text(json.dumps([as_record(case) for case in times], indent=1))


def _parse(text: str, batch: int) -> HeadCase:
    """`360232@0.1` as a case."""
    try:
        identities, rate = text.split("@")
        case = HeadCase(int(identities), float(rate), batch)
    except ValueError as error:
        raise ValueError(f"--heads takes identities@rate such as 360232@0.1, got {text}") from error
    return case


def _table(times: HeadTimes) -> Table:
    case = times.case
    ours = times.median("facescale")
    table = Table(
        title=f"{case.num_classes:,} identities, rate {case.sample_rate:g}, batch {case.batch}",
        box=None,
        padding=(0, 2),
        header_style="bold",
        title_justify="left",
    )
    table.add_column("head", no_wrap=True)
    for title in ("median ms", "least", "most", "over ours"):
        table.add_column(title, justify="right", no_wrap=True)
    for name in CONTENDERS:
        seconds = times.steps[name]
        figures = (times.median(name), min(seconds), max(seconds))
        row = [f"{1e3 * value:,.0f}" for value in figures]
        table.add_row(name, *row, f"{times.ratio(name):.2f} x")
    table.add_row("floor", f"{1e3 * times.floor:,.0f}", "", "", f"ours is {ours / times.floor:.2f}")
    return table
