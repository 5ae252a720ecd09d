"""Contenders that do the same work, timed side by side in one interleaved run.

Every contender is a process of its own, because the allocator's settings hold for a whole process.
They step in turn, A B C A B C, so that a drift of the machine meets all alike, and ratios are
taken round by round. In each round the first contender's process also probes the machine: the rate
of a matrix product and of a copy, from which a case's floor follows.
"""

import multiprocessing
import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from typing import Any

import torch

from facescale.allocator import available_memory, keep_freed_memory

Prepare = Callable[[], Callable[[], object]]
"""Lays out the input of a step, which is not timed, and returns the step, which is."""

Shape = tuple[int, int, int]
"""Of a product (m, k) @ (k, n)."""

SQUARE: Shape = (2048, 2048, 2048)
"""The product at which a machine comes nearest to its limit."""


@dataclass(frozen=True)
class Contender:
    """Who does the work: `build` is called once, in a process of its own; both are pickled."""

    name: str
    build: Callable[[], Prepare]
    memory: float
    """Bytes that it holds, roughly: decides whether all fit beside each other."""
    keeps_memory: bool = False
    """Whether its process keeps freed memory ("tuned"), which glibc by itself does not."""

    def tuned(self, name: str | None = None) -> "Contender":
        """The same with freed memory kept, under a name of its own if given."""
        return replace(self, name=name or self.name, keeps_memory=True)

    def both(self) -> "tuple[Contender, Contender]":
        """As it comes, and tuned."""
        return self, self.tuned(f"{self.name} tuned")


@dataclass(frozen=True)
class Case:
    """Some work of a stated size, and who does it; the first contender is ours."""

    name: str
    """As it was asked for: `head/360232/0.1`."""
    title: str
    contenders: tuple[Contender, ...]
    samples: int
    """Images or embeddings of a step."""
    flop: float = 0.0
    """Of a step, at least."""
    traffic: float = 0.0
    """Bytes that a step reads and writes at least, beside the products'; 0: they do not count."""
    probe: Shape = SQUARE
    """The product that says what the machine can do."""


@dataclass
class Times:
    """What a case came to; seconds of each contender's steps, round by round."""

    case: Case
    interleaved: bool
    steps: dict[str, list[float]]
    gemm: list[float] = field(default_factory=list)
    """FLOP a second of the probe."""
    copy: list[float] = field(default_factory=list)
    """Bytes a second, read and written."""
    lost: dict[str, str] = field(default_factory=dict)
    """Others whose process ended before it had answered, for want of memory mostly; and how."""

    @property
    def ours(self) -> str:
        """The first contender's name."""
        return self.case.contenders[0].name

    @property
    def floor(self) -> float:
        """Seconds that a step needs at least on this machine, in this run; 0 where not known."""
        gemm, copy = statistics.median(self.gemm), statistics.median(self.copy)
        return self.case.flop / gemm + self.case.traffic / copy

    def median(self, contender: str) -> float:
        """Median seconds of a step."""
        return statistics.median(self.steps[contender])

    def ratio(self, contender: str) -> float:
        """How many times ours goes into another's step: median of the ratios round by round."""
        pairs = zip(self.steps[contender], self.steps[self.ours], strict=True)
        return statistics.median(theirs / ours for theirs, ours in pairs)

    def share(self, contender: str) -> float:
        """The rate of a contender's products as a share of the probe's, round by round."""
        pairs = zip(self.steps[contender], self.gemm, strict=True)
        return statistics.median(self.case.flop / seconds / rate for seconds, rate in pairs)

    def record(self) -> dict[str, Any]:
        """Every raw figure, for JSON."""
        return {
            "case": self.case.name,
            "title": self.case.title,
            "samples": self.case.samples,
            "flop": self.case.flop,
            "traffic_bytes": self.case.traffic,
            "interleaved": self.interleaved,
            "seconds": self.steps,
            "probe": self.case.probe,
            "gemm_flop_per_s": self.gemm,
            "copy_bytes_per_s": self.copy,
            "lost": self.lost,
            "floor_s": self.floor,
        }


def interleave(case: Case, rounds: int = 7, memory: float | None = None) -> Times:
    """Step all contenders in turn, `rounds` times after a warm-up.

    Where they do not fit into `memory` bytes beside each other (default: four fifths of what is
    free), each is started anew in every round, warmed up, timed and stopped. Another's process
    that ends before it has answered takes no further part.

    Raises:
        ChildProcessError: Ours did.
    """
    available = 0.8 * available_memory() if memory is None else memory
    together = sum(contender.memory for contender in case.contenders) <= available
    times = Times(case, together, {contender.name: [] for contender in case.contenders})
    workers = {c.name: _Worker(c) for c in case.contenders} if together else {}
    try:
        for round_ in range(rounds + together):
            for contender in case.contenders:
                if contender.name in times.lost:
                    continue
                try:
                    _take_turn(times, contender, workers, counts=round_ >= together)
                except ChildProcessError as error:
                    if contender.name == times.ours:
                        raise
                    times.lost[contender.name] = str(error)
    finally:
        for worker in workers.values():
            worker.close()
    return times


def _take_turn(
    times: Times, contender: Contender, workers: "dict[str, _Worker]", *, counts: bool
) -> None:
    """A step of a living worker, or of one that lives for it; ours also probes the machine."""
    worker = workers.get(contender.name) or _Worker(contender)
    if not times.interleaved:
        worker.ask("step")
    seconds = worker.ask("step")
    if counts:  # the first round of living workers is their warm-up
        times.steps[contender.name].append(seconds)
        if contender.name == times.ours:
            gemm, copy = worker.ask(times.case.probe)
            times.gemm.append(gemm)
            times.copy.append(copy)
    if not times.interleaved:
        worker.close()


class _Worker:
    """A contender in a process of its own, which answers what it is asked."""

    def __init__(self, contender: Contender) -> None:
        context = multiprocessing.get_context("spawn")
        self._name = contender.name
        self._pipe, far_end = context.Pipe()
        self._process = context.Process(target=_serve, args=(far_end, contender))
        self._process.start()
        far_end.close()

    def ask(self, question: str | Shape) -> Any:
        """To "step" the seconds of a step, to a shape the rates of that product and of a copy."""
        try:
            self._pipe.send(question)
            return self._pipe.recv()
        except (EOFError, ConnectionError) as error:
            self._process.join()
            code = self._process.exitcode
            raise ChildProcessError(
                f"{self._name} ended with status {code}; its error is above, or it ran out of "
                "memory: take a smaller batch or fewer identities"
            ) from error

    def close(self) -> None:
        """End the process."""
        with suppress(ConnectionError):  # it died of something that is raised already
            self._pipe.send("stop")
        self._process.join()


def _serve(pipe: Connection, contender: Contender) -> None:
    """A worker's life: build, then answer until told to stop."""
    if contender.keeps_memory:
        keep_freed_memory()
    prepare = contender.build()
    while (question := pipe.recv()) != "stop":
        pipe.send(_time(prepare) if question == "step" else _probe(question))


def _time(prepare: Prepare) -> float:
    step = prepare()
    begin = time.perf_counter()
    step()
    return time.perf_counter() - begin


def _probe(shape: Shape) -> tuple[float, float]:
    """FLOP/s of a product, and bytes/s of a large copy."""
    m, k, n = shape
    flop = 2.0 * m * k * n
    repeats = max(3, int(6e9 / flop))
    left, right = torch.randn(m, k), torch.randn(k, n)
    source, target = torch.ones(1 << 25), torch.zeros(1 << 25)
    for _ in range(3):
        left @ right
    begin = time.perf_counter()
    for _ in range(repeats):
        left @ right
    gemm = repeats * flop / (time.perf_counter() - begin)
    begin = time.perf_counter()
    target.copy_(source)
    return gemm, 2 * source.nbytes / (time.perf_counter() - begin)
