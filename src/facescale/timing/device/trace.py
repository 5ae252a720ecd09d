"""A profile of training steps: top kernels, launches, gaps on the device, reads by the host."""

import json
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch.profiler import ProfilerActivity, profile

from facescale.timing.clock import synchronise
from facescale.timing.device.bench import Bench, Row
from facescale.timing.device.step_times import OURS, PEER, Setting, prepare_step, row_of

STEPS = 3
TOP = 20
ON_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")
"""Categories of a trace's events that a device works on."""
LAUNCHES = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx")
WAITS = ("cudaStreamSynchronize", "cudaMemcpy")
"""Calls in which the host waits for the device; `cudaDeviceSynchronize` is the profile's own."""
LATE = "cudaEventSynchronize"
"""What the trainer reads one step later; the device has done it long before."""


def run(bench: Bench) -> None:
    """Our step, then arcface_torch's."""
    sizes = bench.sizes
    dataset, identities = next(iter(sizes.identities.items()))
    for who in (OURS, PEER):
        setting = Setting(
            sizes.networks[0], sizes.batches[-2:][0], sizes.precisions[0], identities, dataset, 0.1,
            who, "graphs" if bench.on_cuda and who == OURS else "eager",
        )  # fmt: skip
        found: list[Row] = []
        what = row_of(setting) | {"what": "total"}
        bench.notes.measure(what, partial(_profile, bench, setting, found))
        for row in found:
            bench.notes.add(row_of(setting) | row)


def _profile(bench: Bench, setting: Setting, found: list[Row]) -> Row:
    prepare = prepare_step(bench, setting)
    for _ in range(3):
        prepare()()
    steps = [prepare() for _ in range(STEPS)]
    synchronise(bench.device)
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * bench.on_cuda
    with profile(activities=activities) as profiler:
        for step in steps:
            step()
        synchronise(bench.device)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_bytes())["traceEvents"]
    total, top = summary(events, STEPS)
    found.extend(top)
    return total


def summary(events: Sequence[dict[str, Any]], steps: int) -> tuple[Row, list[Row]]:
    """Totals of a step and the operations that take most of it, from a Chrome trace.

    Times are ms of a step. Where nothing ran on a device, operators of the CPU take its place,
    without the time of those that they call.

    Args:
        events: `traceEvents`, times in microseconds.
        steps: How many steps were traced.
    """
    whole = [e for e in events if e.get("ph") == "X" and "dur" in e]
    on_device = [e for e in whole if e.get("cat") in ON_DEVICE]
    calls = Counter(e["name"] for e in whole if e.get("cat") in ("cuda_runtime", "cuda_driver"))
    times: dict[str, float] = defaultdict(float)
    counts: Counter[str] = Counter()
    for name, own in ((e["name"], e["dur"]) for e in on_device) if on_device else _own_times(whole):
        times[name] += own / 1e3 / steps
        counts[name] += 1
    busy, span = _busy(on_device)
    total: Row = {
        "ms": sum(times.values()),
        "busy_ms": busy / 1e3 / steps,
        "idle_ms": (span - busy) / 1e3 / steps,
        "launches": sum(calls[name] for name in LAUNCHES) / steps,
        "graph_launches": calls["cudaGraphLaunch"] / steps,
        "host_reads": sum(calls[name] for name in WAITS) / steps,
        "late_reads": calls[LATE] / steps,
    }
    top = sorted(times, key=lambda name: -times[name])[:TOP]
    return total, [
        {
            "what": "operation",
            "name": name[:120],
            "ms": times[name],
            "count": counts[name] / steps,
            "share": times[name] / total["ms"] if total["ms"] else 0.0,
        }
        for name in top
    ]


def _busy(events: Iterable[dict[str, Any]]) -> tuple[float, float]:
    """Time in which at least one event runs, and time from the first to the end of the last."""
    busy, begin, end = 0.0, None, 0.0
    for event in sorted(events, key=lambda e: float(e["ts"])):
        start, stop = float(event["ts"]), float(event["ts"]) + float(event["dur"])
        begin = start if begin is None else begin
        busy += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return busy, 0.0 if begin is None else end - begin


def _own_times(events: Iterable[dict[str, Any]]) -> Iterable[tuple[str, float]]:
    """Each operator of the CPU, with its time less that of the operators inside of it."""
    threads: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for event in events:
        if event.get("cat") == "cpu_op":
            threads[event.get("tid")].append(event)
    for listed in threads.values():
        open_events: list[list[Any]] = []  # name, end, own time
        for event in sorted(listed, key=lambda e: (float(e["ts"]), -float(e["dur"]))):
            start, length = float(event["ts"]), float(event["dur"])
            while open_events and open_events[-1][1] <= start:
                name, _, own = open_events.pop()
                yield name, own
            if open_events:
                open_events[-1][2] -= length
            open_events.append([event["name"], start + length, length])
        for name, _, own in open_events:
            yield name, own
