"""Interleaved timing of contenders that do the same work.

Each contender is a process of its own, because the allocator's settings apply to a whole process.
They step in turn, A B C A B C, so that a drift of the machine affects all of them, and ratios are
taken round by round. In each round the first contender's process also measures the machine's rate
of a matrix product and of a copy, which give the floor of a case.
"""

import multiprocessing
import statistics
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import torch

from facescale.allocator import available_memory, keep_freed_memory
from facescale.timing.clock import seconds_of

Prepare = Callable[[], Callable[[], object]]
"""Prepares the input of a step (not timed) and returns the step (timed)."""

Shape = tuple[int, int, int]
"""(m, k, n) of a product (m, k) @ (k, n)."""

SQUARE: Shape = (2048, 2048, 2048)
"""A product large enough to reach the machine's peak rate."""


@dataclass(frozen=True)
class Contender:
    """One implementation of the work; it is pickled, and `build` is called once in its process."""

    name: str
    build: Callable[[], Prepare]
    memory: float
    """Approximate bytes, to decide whether all contenders fit into memory together."""
    keeps_memory: bool = False
    """Whether its process keeps freed memory ("tuned"); glibc by default does not."""

    def tuned(self, name: str | None = None) -> "Contender":
        """The same contender with freed memory kept, under another name if given."""
        return replace(self, name=name or self.name, keeps_memory=True)

    def both(self, device: str = "cpu") -> "tuple[Contender, ...]":
        """With glibc's defaults, and tuned; once on CUDA, whose memory glibc does not manage."""
        return (self, self.tuned(f"{self.name} tuned")) if device == "cpu" else (self,)


@dataclass(frozen=True)
class Case:
    """Work of a given size and its contenders; the first one is ours."""

    name: str
    """As on the command line: `head/360232/0.1`."""
    title: str
    contenders: tuple[Contender, ...]
    samples: int
    """Images or embeddings of a step."""
    flop: float = 0.0
    """Minimum floating-point operations of a step."""
    traffic: float = 0.0
    """Minimum bytes that a step reads and writes outside of products; 0 if negligible."""
    probe: Shape = SQUARE
    """The product that measures the machine's rate."""
    device: str = "cpu"


@dataclass
class Times:
    """Result of a case: the seconds of each contender's steps, by round."""

    case: Case
    interleaved: bool
    steps: dict[str, list[float]]
    gemm: list[float] = field(default_factory=list)
    """FLOP/s of the probe."""
    copy: list[float] = field(default_factory=list)
    """Bytes/s, read plus written."""
    lost: dict[str, str] = field(default_factory=dict)
    """Contenders whose process ended, mostly for lack of memory, and its message."""

    @property
    def ours(self) -> str:
        """The first contender's name."""
        return self.case.contenders[0].name

    @property
    def floor(self) -> float:
        """Minimum seconds of a step at the rates measured in this run; 0 if not known."""
        gemm, copy = statistics.median(self.gemm), statistics.median(self.copy)
        return self.case.flop / gemm + self.case.traffic / copy

    def median(self, contender: str) -> float:
        """Median seconds of a step."""
        return statistics.median(self.steps[contender])

    def ratio(self, contender: str) -> float:
        """Time of a contender as a multiple of ours: median of the ratios of all rounds."""
        pairs = zip(self.steps[contender], self.steps[self.ours], strict=True)
        return statistics.median(theirs / ours for theirs, ours in pairs)

    def share(self, contender: str) -> float:
        """Rate of a contender's products as a share of the probe's: median of all rounds."""
        pairs = zip(self.steps[contender], self.gemm, strict=True)
        return statistics.median(self.case.flop / seconds / rate for seconds, rate in pairs)

    def record(self) -> dict[str, Any]:
        """All raw figures, for JSON."""
        return {
            "case": self.case.name,
            "title": self.case.title,
            "device": self.case.device,
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

    If they do not fit into `memory` bytes together (default: 80 % of the available memory of the
    case's device), each is started, warmed up, timed and stopped in every round. A contender whose
    process ends takes no further part.

    Raises:
        ChildProcessError: The process of our contender ended.
    """
    available = 0.8 * _available(case.device) if memory is None else memory
    together = sum(contender.memory for contender in case.contenders) <= available
    times = Times(case, together, {contender.name: [] for contender in case.contenders})
    workers = {c.name: _Worker(c, case.device) for c in case.contenders} if together else {}
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


def _available(device: str) -> float:
    """Available bytes of the memory that a case takes."""
    if device == "cpu":
        return available_memory()
    return float(torch.cuda.mem_get_info(device)[0])


def _take_turn(
    times: Times, contender: Contender, workers: "dict[str, _Worker]", *, counts: bool
) -> None:
    """Time a step of a running worker, or of a temporary one; ours also runs the probe."""
    worker = workers.get(contender.name) or _Worker(contender, times.case.device)
    if not times.interleaved:
        worker.ask("step")
    seconds = worker.ask("step")
    if counts:  # the first round of running workers is their warm-up
        times.steps[contender.name].append(seconds)
        if contender.name == times.ours:
            gemm, copy = worker.ask(times.case.probe)
            times.gemm.append(gemm)
            times.copy.append(copy)
    if not times.interleaved:
        worker.close()


class _Worker:
    """A contender in a process of its own, which answers requests."""

    def __init__(self, contender: Contender, device: str) -> None:
        context = multiprocessing.get_context("spawn")
        self._name = contender.name
        self._pipe, far_end = context.Pipe()
        self._process = context.Process(target=_serve, args=(far_end, contender, device))
        self._process.start()
        far_end.close()

    def ask(self, question: str | Shape) -> Any:
        """For "step" the seconds of a step, for a shape the rates of that product and of a copy."""
        try:
            self._pipe.send(question)
            return self._pipe.recv()
        except (EOFError, ConnectionError) as error:
            self._process.join()
            code = self._process.exitcode
            raise ChildProcessError(
                f"{self._name} ended with status {code}; its error is above, or it ran out of "
                "memory: use a smaller batch or fewer identities"
            ) from error

    def close(self) -> None:
        """End the process."""
        with suppress(ConnectionError):  # it has ended; its error is being raised
            self._pipe.send("stop")
        self._process.join()


def _serve(pipe: Connection, contender: Contender, device: str) -> None:
    """Main function of a worker: build, then answer requests until "stop"."""
    if contender.keeps_memory:
        keep_freed_memory()
    prepare = contender.build()
    while (question := pipe.recv()) != "stop":
        pipe.send(seconds_of(prepare(), device) if question == "step" else _probe(question, device))


def _probe(shape: Shape, device: str) -> tuple[float, float]:
    """FLOP/s of a float32 product, and bytes/s of a large copy."""
    m, k, n = shape
    flop = 2.0 * m * k * n
    repeats = max(3, int(6e9 / flop))
    left, right = torch.randn(m, k, device=device), torch.randn(k, n, device=device)
    source, target = torch.ones(1 << 25, device=device), torch.zeros(1 << 25, device=device)

    def products() -> None:
        for _ in range(repeats):
            left @ right

    for _ in range(3):
        left @ right
    gemm = repeats * flop / seconds_of(products, device)
    return gemm, 2 * source.nbytes / seconds_of(partial(target.copy_, source), device)
