"""`facescale bench kernels`: what we do beside the peers' plans of work."""

import argparse
import json
import statistics
from dataclasses import replace
from typing import TYPE_CHECKING

from rich.table import Table

from facescale.cli.measured import measured_device
from facescale.cli.parser import Parser, check_counts
from facescale.cli.terminal import escape, file_to_write, say, show, table

if TYPE_CHECKING:
    from facescale.timing.interleave import Case, Times

USAGE = "facescale bench kernels [CASE ...] [options]"
CASES = ["head/85742", "head/360232/0.1"]


_CASES_HELP = f"""a kind and its sizes, such as head/360232/0.1, step/r100/8, loader, inference; an
unknown one is answered by a list; {" ".join(CASES)} when not given"""


def add_options(parser: Parser) -> None:
    """What the command understands."""
    add = parser.add_argument
    add("cases", nargs="*", default=CASES, metavar="CASE", help=_CASES_HELP)
    add("--against", type=str, help="only these of the others: dense,sampled")
    add("--rounds", type=int, default=7, help="steps of each contender, in turn")
    add("--device", choices=["auto", "cpu", "cuda"], default="auto")
    add("--output", type=str, help="JSON of every raw figure")


def run(chosen: argparse.Namespace) -> None:
    """Time every case, show a table of each, and write the raw figures down after each."""
    check_counts(chosen, "rounds")
    from facescale.files import write_whole
    from facescale.timing import case_of
    from facescale.timing.interleave import interleave

    output = None if chosen.output is None else file_to_write(chosen.output)
    device = measured_device(chosen.device)
    cases = [_choose(case_of(name, device), chosen.against) for name in chosen.cases]
    records = []
    for case in cases:
        times = interleave(case, chosen.rounds)
        say(f"\n[bold]{escape(case.title)}[/]\n{escape(_probes(times))}")
        show(_table(times))
        for said in times.lost.values():
            say(escape(said))
        records.append(times.record())
        if output is not None:
            write_whole(output, [json.dumps(records, indent=1).encode()])


def _choose(case: "Case", against: str | None) -> "Case":
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


def _table(times: "Times") -> Table:
    case = times.case
    shown = table("", "median ms", "least", "most", "samples/s", "over ours")
    for contender in case.contenders:
        if contender.name in times.lost:
            shown.add_row(contender.name, *"-----")
            continue
        seconds, median = times.steps[contender.name], times.median(contender.name)
        row = [_ms(median), _ms(min(seconds)), _ms(max(seconds)), f"{case.samples / median:,.3g}"]
        shown.add_row(contender.name, *row, f"{times.ratio(contender.name):.2f} x")
    if times.floor:
        ours = times.median(times.ours) / times.floor
        rate = f"{case.samples / times.floor:,.3g}"
        shown.add_row("floor", _ms(times.floor), "", "", rate, f"ours is {ours:.2f}")
    return shown


def _probes(times: "Times") -> str:
    """What the machine could do in these minutes."""
    gemm, copy = (statistics.median(rates) / 1e9 for rates in (times.gemm, times.copy))
    said = f"probes: product {gemm:,.0f} GFLOP/s, copy {copy:.1f} GB/s"
    if times.case.flop:
        said += f"; our products run at {times.share(times.ours):.0%} of that"
    return said if times.interleaved else said + "; one process at a time, for want of memory"


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:,.0f}" if seconds >= 0.1 else f"{1e3 * seconds:.1f}"
