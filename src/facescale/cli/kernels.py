"""`facescale bench kernels`: what we do beside the peers' plans of work."""

import json
from dataclasses import replace
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace
from rich.console import Console
from rich.table import Table

from facescale.timing import KINDS, case_of, usage
from facescale.timing.interleave import Case, Times, interleave

HELP = "time head, step, loader or inference beside the peers' plans of work"
CASES = ["head/85742", "head/360232/0.1"]


def add_options(parser: ArgumentParser) -> None:
    """What the command understands."""
    add = parser.add_argument
    add("cases", nargs="*", default=CASES, help=f"any of {', '.join(map(usage, KINDS))}")
    add("--against", type=str, help="only these of the others: dense,sampled")
    add("--rounds", type=int, default=7, help="steps of each contender, in turn")
    add("--output", type=str, help="JSON of every raw figure")


def run(chosen: Namespace) -> None:
    """Time every case, show a table of each, and write the raw figures down."""
    cases = [_choose(case_of(name), chosen.against) for name in chosen.cases]
    terminal = Console(highlight=False)
    records = []
    for case in cases:
        times = interleave(case, chosen.rounds)
        terminal.print(f"\n[bold]{case.title}[/]", _probes(times), sep="\n", soft_wrap=True)
        terminal.print(_table(times))
        for said in times.lost.values():
            terminal.print(said, soft_wrap=True)
        records.append(times.record())
    if chosen.output is not None:
        Path(chosen.output).write_text(json.dumps(records, indent=1))


def _choose(case: Case, against: str | None) -> Case:
    """The case with the others that `against` names, as they come and tuned."""
    if against is None:
        return case
    ours, *others = case.contenders
    there = {contender.name.split()[0] for contender in others}
    if unknown := set(against.split(",")) - there:
        raise ValueError(
            f"--against {', '.join(unknown)}: beside {case.name} there are {', '.join(there)}"
        )
    kept = [contender for contender in others if contender.name.split()[0] in against.split(",")]
    return replace(case, contenders=(ours, *kept))


def _table(times: Times) -> Table:
    case = times.case
    table = Table(box=None, padding=(0, 2), header_style="bold")
    table.add_column("", no_wrap=True)
    for title in ("median ms", "least", "most", "samples/s", "over ours"):
        table.add_column(title, justify="right", no_wrap=True)
    for contender in case.contenders:
        if contender.name in times.lost:
            table.add_row(contender.name, *"-----")
            continue
        seconds, median = times.steps[contender.name], times.median(contender.name)
        row = [_ms(median), _ms(min(seconds)), _ms(max(seconds)), f"{case.samples / median:,.3g}"]
        table.add_row(contender.name, *row, f"{times.ratio(contender.name):.2f} x")
    if times.floor:
        ours = times.median(times.ours) / times.floor
        rate = f"{case.samples / times.floor:,.3g}"
        table.add_row("floor", _ms(times.floor), "", "", rate, f"ours is {ours:.2f}")
    return table


def _probes(times: Times) -> str:
    """What the machine could do in these minutes."""
    gemm, copy = (sorted(rates)[len(rates) // 2] / 1e9 for rates in (times.gemm, times.copy))
    said = f"probes: product {gemm:,.0f} GFLOP/s, copy {copy:.1f} GB/s"
    if times.case.flop:
        said += f"; our products run at {times.share(times.ours):.0%} of that"
    return said if times.interleaved else said + "; one process at a time, for want of memory"


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:,.0f}" if seconds >= 0.1 else f"{1e3 * seconds:.1f}"
