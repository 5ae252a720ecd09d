"""What a device can do: measured in phases, each a process of its own with a share of the time.

A phase is a module with a function `run(bench)` and a line in `PHASES`. It writes a row of plain
values for each thing that it measures, as soon as that is measured.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Phase:
    """One part of the benchmark.

    Attributes:
        name: In the results.
        module: Where its `run` is.
        share: Of the time, relative to the other phases.
        argument: For `run`, as `bench.argument`.
        not_on_cpu: Why it is not run on a CPU; empty if it is.
    """

    name: str
    module: str
    share: float
    argument: str = ""
    not_on_cpu: str = ""


def _own(
    name: str, share: float, module: str = "", argument: str = "", not_on_cpu: str = ""
) -> Phase:
    return Phase(name, f"{__name__}.{module or name}", share, argument, not_on_cpu)


_WHOLE = "on a CPU it would take the memory of the whole system"


PHASES = (
    _own("ceilings", 4),
    _own("kernels", 8, "correctness"),
    _own("head", 10, "head_times"),
    _own("step", 32, "step_times"),
    _own("memory_all", 12, "capped", "all", _WHOLE),
    _own("profile", 4, "trace"),
    _own("backbone", 8, "backbone_times"),
    _own("memory_1", 6, "capped", "0"),
    _own("ranks", 4, "ranks"),
    _own("memory_2", 6, "capped", "1"),
)
"""The most telling ones first: what is left of the time of one goes to those behind it."""
