"""The largest batch and the most identities under a limit of memory: planned, then tried.

The plan predicts a number. True steps with 5 % less and 5 % more confirm it, or lead on to the
numbers between which the limit is.
"""

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch

from facescale.plan.limit import is_out_of_memory, limit_memory, outside_allocator
from facescale.plan.plan import Planner
from facescale.timing.clock import LEAST, time_calls
from facescale.timing.device.bench import Bench, Row, free_memory
from facescale.timing.device.step_times import Setting, config_for, row_of, step_row
from facescale.timing.steps import own_step
from facescale.training.metrics import peak_memory

STEP = 0.05
"""How far from the predicted number it is tried first."""
MORE = 4
"""Tries beyond the first two, each 15 % further away."""
GIB = 1 << 30


@dataclass(frozen=True)
class Search:
    """What is made as large as it can be."""

    of: str
    """"batch" or "identities"."""
    setting: Setting
    options: dict[str, Any] = field(default_factory=dict)
    """Of the trainer's config."""

    def at(self, number: int) -> Setting:
        """The setting with that batch or that many identities."""
        if self.of == "batch":
            return replace(self.setting, batch=number)
        return replace(self.setting, identities=number)


def run(bench: Bench) -> None:
    """Under the limit that `bench.argument` names: "all", or the place of one in `sizes.caps`."""
    if bench.argument == "all":
        assert bench.on_cuda, "there is no phase of that name on a CPU"
        memory, cap = torch.cuda.get_device_properties(bench.device).total_memory, None
    else:
        place = int(bench.argument)
        if place >= len(bench.sizes.caps):
            return
        cap = bench.sizes.caps[place]
        memory = int(cap * GIB)
        if bench.on_cuda:
            if memory > torch.cuda.get_device_properties(bench.device).total_memory:
                bench.notes.add({"what": "limit", "note": f"this GPU has less than {cap:g} GiB"})
                return
            limit_memory(memory, bench.device)
    process = 0 if bench.on_cuda else peak_memory(bench.device)
    for search in searches(bench, memory):
        what = row_of(search.setting) | search.options | {"what": search.of, "cap_gib": cap}
        bench.notes.measure(what, partial(_confirm, bench, search, memory, process))


def searches(bench: Bench, memory: int) -> Iterator[Search]:
    """The published report's most identities, the largest batch, then what the targets ask for."""
    sizes = bench.sizes
    large, network, heavy = next(iter(sizes.identities)), sizes.networks[0], sizes.report_batch[0]
    few_bits = "fp16" if bench.on_cuda else "float32"
    yield Search("identities", Setting(network, heavy, few_bits, 0, "emore", 0.1))
    first = Setting(network, 0, sizes.precisions[0], sizes.identities[large], large, 0.1)
    yield Search("batch", first)
    yield from _most(sizes, memory, few_bits)
    for dataset, identities in reversed(sizes.identities.items()):
        for rate in (1.0, 0.1):
            setting = Setting(network, 0, "float32", identities, dataset, rate)
            yield Search("batch", setting)
    yield Search("batch", Setting("y1", 0, "float32", sizes.identities["emore"], "emore"))


def _most(sizes: Any, memory: int, precision: str) -> Iterator[Search]:
    """A light network, and rows of fewer and fewer bits; few of them are drawn."""
    for rows, momentum, row_bytes in (
        ("float32", 0.9, 4096), ("bfloat16", 0.9, 2048), ("int8", 0.0, 516),
    ):  # fmt: skip
        rate = min(0.1, sizes.drawn * row_bytes / memory)
        setting = Setting(sizes.light[0], sizes.batches[-1], precision, 0, "", rate)
        yield Search("identities", setting, {"rows": rows, "momentum": momentum})


def _confirm(bench: Bench, search: Search, memory: int, process: int) -> Row:
    number = {"batch": 64, "identities": 1000}[search.of]  # where the plan begins to search
    config = config_for(search.at(number), **search.options)
    planner = Planner(config, 1, bench.device.type, process)
    setting = search.setting
    if search.of == "batch":
        predicted = planner.largest_batch(setting.identities, memory)
    else:
        predicted = planner.most_identities(setting.batch, memory)
    if predicted < 2:
        raise ValueError(f"the plan has no room for 2 in {memory / GIB:.1f} GiB")
    rows: dict[int, Row] = {}
    fits = partial(_fits, bench, search, memory, rows)
    tries = bracket(fits, predicted, lambda: bench.notes.left_s > 0)
    fitting = max((n for n, fits in tries.items() if fits), default=0)
    failing = min((n for n, fits in tries.items() if not fits), default=None)
    row: Row = {"predicted": predicted, "fits": fitting, "fails": failing}
    row |= {"tries": [[n, fits] for n, fits in tries.items()], "memory": memory}
    if fitting:
        at = search.at(fitting)
        planned = planner.plan(at.batch, at.identities, memory).total
        row |= rows[fitting] | {search.of: fitting, "planned_gib": planned / GIB}
    return row


def bracket(
    fits: Callable[[int], bool], predicted: int, more: Callable[[], bool]
) -> dict[int, bool]:
    """Try numbers just below and above a predicted limit; returns whether each fits.

    Where the limit is not between the two, the search goes on towards it, while `more()`.
    """
    below = max(1, int(predicted * (1 - STEP)))
    above = max(below + 1, int(predicted * (1 + STEP)))
    tries = {below: fits(below)}
    if tries[below]:
        tries[above] = fits(above)
    for _ in range(MORE):
        if not more() or len(set(tries.values())) == 2:
            break
        if all(tries.values()):
            above = max(above + 1, int(1.15 * above))
            tries[above] = fits(above)
        elif below > 1:
            below = max(1, int(0.85 * below))
            tries[below] = fits(below)
    return tries


def _fits(bench: Bench, search: Search, memory: int, rows: dict[int, Row], number: int) -> bool:
    """Take some true steps; their figures go to `rows`."""
    free_memory(bench.device)
    setting = search.at(number)
    try:
        if bench.on_cuda:
            rows[number] = _steps(bench, setting, search.options)
        else:
            rows[number] = _apart(bench, setting, search.options, memory)
        return True
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        print(f"{number:,}: {error}", flush=True)
        return False


def _apart(bench: Bench, setting: Setting, options: dict[str, Any], memory: int) -> Row:
    """The steps in a process of their own, which a failed allocation on a CPU may end.

    Raises:
        ChildProcessError: It ended without a word, which says nothing about the limit.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as executor:
        try:
            return executor.submit(_limited, bench, setting, options, memory).result()
        except BrokenProcessPool as error:
            raise ChildProcessError(f"{row_of(setting)} ended its process") from error


def _limited(bench: Bench, setting: Setting, options: dict[str, Any], memory: int) -> Row:
    limit_memory(memory, bench.device)
    return _steps(bench, setting, options)


def _steps(bench: Bench, setting: Setting, options: dict[str, Any]) -> Row:
    prepare = own_step(config_for(setting, **options), bench.device.type)
    # Three steps show the memory; on CUDA they are cheap, and the report's rows come out of them.
    warmup, least = (2, LEAST) if bench.on_cuda else (0, 2)
    timed = time_calls(lambda: prepare()(), bench.device, warmup=warmup, seconds=0.0, least=least)
    row = step_row(bench, setting, timed)
    if bench.on_cuda:
        # The plan counts CUDA's context, too.
        return row | {"device_gib": row["reserved_gib"] + outside_allocator(bench.device) / GIB}
    return row | {"device_gib": peak_memory(bench.device) / GIB}
