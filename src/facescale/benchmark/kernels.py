"""The head timed beside the peers' plans and beside the machine's floor, in one interleaved run.

Every contender is a process of its own, because the allocator's settings hold for a whole process.
They step in turn, A B C A B C, so that a drift of the machine meets all alike, and ratios are
taken round by round. The floor of a step is its three matrix products at the rate of a probe, and
its rows' traffic at the rate of a copy, probed in the same run.
"""

import multiprocessing
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from facescale.allocator import keep_freed_memory
from facescale.benchmark.baselines import DenseHead, OwnHead, SampledHead

HEADS = {"facescale": OwnHead, "dense": DenseHead, "sampled": SampledHead}
CONTENDERS = ("facescale", "dense", "dense tuned", "sampled", "sampled tuned")
PROBE_ROWS = 1024


@dataclass(frozen=True)
class HeadCase:
    """A size of the head to be timed."""

    num_classes: int
    sample_rate: float
    batch: int = 64
    dim: int = 512

    @property
    def rows(self) -> int:
        """Rows of a step."""
        return int(self.num_classes * self.sample_rate)

    @property
    def flop(self) -> float:
        """Of the three products with the sampled rows: logits, and both gradients."""
        return 3 * 2.0 * self.rows * self.dim * self.batch

    @property
    def traffic(self) -> float:
        """Bytes that float32 rows move at least: weight read twice, momentum once, both written."""
        return 5 * 4.0 * self.rows * self.dim

    def memory(self, contender: str) -> float:
        """Bytes that a contender holds, roughly: decides whether all fit beside each other."""
        copies = 3.5 if contender.startswith("dense") else 2.0
        return copies * 4 * self.num_classes * self.dim + 6 * 4 * self.rows * self.dim


@dataclass
class HeadTimes:
    """What a case came to; seconds."""

    case: HeadCase
    interleaved: bool
    steps: dict[str, list[float]] = field(default_factory=dict)
    gemm: list[float] = field(default_factory=list)
    """FLOP a second of the probe."""
    copy: list[float] = field(default_factory=list)
    """Bytes a second, read and written."""

    @property
    def floor(self) -> float:
        """Seconds that a step needs at least on this machine, in this run."""
        gemm, copy = statistics.median(self.gemm), statistics.median(self.copy)
        return self.case.flop / gemm + self.case.traffic / copy

    def median(self, contender: str) -> float:
        """Median seconds of a step."""
        return statistics.median(self.steps[contender])

    def ratio(self, contender: str) -> float:
        """How many times ours goes into another's step: median of the ratios round by round."""
        pairs = zip(self.steps[contender], self.steps["facescale"], strict=True)
        return statistics.median(theirs / ours for theirs, ours in pairs)


class _Worker:
    """A contender in a process of its own, which answers what it is asked."""

    def __init__(self, contender: str, case: HeadCase) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, far_end = context.Pipe()
        self._process = context.Process(target=_serve, args=(far_end, contender, case))
        self._process.start()
        far_end.close()

    def ask(self, question: str) -> Any:
        """To "step" the seconds of a step, to "probe" the rates of product and copy."""
        self._pipe.send(question)
        return self._pipe.recv()

    def close(self) -> None:
        """End the process."""
        self._pipe.send("stop")
        self._process.join()


def _serve(pipe: Connection, contender: str, case: HeadCase) -> None:
    """A worker's life: build, then answer until told to stop."""
    if contender == "facescale" or contender.endswith("tuned"):
        keep_freed_memory()
    head = HEADS[contender.split()[0]](case.num_classes, case.dim, case.sample_rate)
    random = torch.Generator().manual_seed(1)
    while (question := pipe.recv()) != "stop":
        pipe.send(_probe() if question == "probe" else _time_step(head, case, random))


def _time_step(head: Any, case: HeadCase, random: torch.Generator) -> float:
    embeddings = torch.randn(case.batch, case.dim, generator=random).requires_grad_()
    labels = torch.randint(case.num_classes, (case.batch,), generator=random)
    begin = time.perf_counter()
    head.step(embeddings, labels)
    return time.perf_counter() - begin


def _probe() -> tuple[float, float]:
    """FLOP/s of a block's product with a batch, and bytes/s of a large copy."""
    block, batch = torch.randn(PROBE_ROWS, 512), torch.randn(512, 64)
    source, target = torch.ones(1 << 25), torch.zeros(1 << 25)
    for _ in range(3):
        block @ batch
    begin = time.perf_counter()
    for _ in range(100):
        block @ batch
    gemm = 100 * 2 * PROBE_ROWS * 512 * 64 / (time.perf_counter() - begin)
    begin = time.perf_counter()
    target.copy_(source)
    return gemm, 2 * source.nbytes / (time.perf_counter() - begin)


def time_heads(
    case: HeadCase,
    rounds: int = 7,
    contenders: Sequence[str] = CONTENDERS,
    memory: float | None = None,
) -> HeadTimes:
    """Step all contenders in turn, `rounds` times after a warm-up.

    Where they do not fit into `memory` bytes beside each other (default: four fifths of what is
    free), each is started anew in every round, warmed up, timed and stopped.
    """
    available = 0.8 * _available_memory() if memory is None else memory
    together = sum(case.memory(contender) for contender in contenders) <= available
    times = HeadTimes(case, together, {contender: [] for contender in contenders})
    workers = {c: _Worker(c, case) for c in contenders} if together else {}
    for round_ in range(rounds + together):
        for contender in contenders:
            worker = workers.get(contender) or _Worker(contender, case)
            if not together:
                worker.ask("step")
            seconds = worker.ask("step")
            if round_ >= together:  # the first round of living workers is their warm-up
                times.steps[contender].append(seconds)
            if contender == "facescale":
                gemm, copy = worker.ask("probe")
                times.gemm.append(gemm)
                times.copy.append(copy)
            if not together:
                worker.close()
    for worker in workers.values():
        worker.close()
    return times


def _available_memory() -> float:
    """Bytes that the system can hand out now; 8 GiB where it does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return 8 * 2.0**30
    return next(1024.0 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))


def as_record(times: HeadTimes) -> dict[str, Any]:
    """Every raw figure, for JSON."""
    return {
        "num_classes": times.case.num_classes,
        "sample_rate": times.case.sample_rate,
        "batch": times.case.batch,
        "dim": times.case.dim,
        "interleaved": times.interleaved,
        "seconds": times.steps,
        "gemm_flop_per_s": times.gemm,
        "copy_bytes_per_s": times.copy,
        "floor_s": times.floor,
    }
