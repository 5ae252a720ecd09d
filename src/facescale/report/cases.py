"""The matrix of the report as data: which network, how parallel, what batch, on how many devices.

A case is a table of the report; a cell is a case on a number of devices. `published.py` has the
report's figures under the same names.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

MAX: Literal["max"] = "max"
"""In place of a batch: the largest one that fits."""


@dataclass(frozen=True)
class Network:
    """A network on a data set; the preset of that name describes both."""

    title: str
    dataset: str
    num_classes: int
    batch: int
    modes: tuple[str, ...]


MODES = {
    "data_parallel": ("Data parallelism", ("--head.shards", "1")),
    "model_parallel": ("Model parallelism", ()),
    "partial_fc": ("Partial FC, sample rate 0.1", ("--head.sample_rate", "0.1")),
}
"""Title and options of a mode. Without options each rank holds a part of the centres."""

NETWORKS = {
    "emore_r100": Network("face_emore, R100", "emore", 85_742, 64, tuple(MODES)),
    "glint360k_r100": Network("glint360k, R100", "glint360k", 360_232, 64, tuple(MODES)),
    "emore_y1": Network(
        "face_emore, Y1", "emore", 85_742, 256, ("data_parallel", "model_parallel")
    ),
}

IDENTITIES = "most_identities"
"""The last table: Partial FC, batch 64, the most identities that fit."""


@dataclass(frozen=True)
class Case:
    """One table of the report."""

    network: str
    mode: str
    batch: int | Literal["max"]
    searches_identities: bool = False

    @property
    def name(self) -> str:
        """`emore_r100/partial_fc/64`."""
        last = IDENTITIES if self.searches_identities else str(self.batch)
        return f"{self.network}/{self.mode}/{last}"

    @property
    def title(self) -> str:
        """`face_emore, R100: Partial FC, sample rate 0.1, batch 64`."""
        batch = "the largest batch" if self.batch == MAX else f"batch {self.batch}"
        whole = f"{NETWORKS[self.network].title}: {MODES[self.mode][0]}, {batch}"
        return f"{whole}, most identities" if self.searches_identities else whole

    @property
    def options(self) -> tuple[str, ...]:
        """Options of the trainer for the mode."""
        return MODES[self.mode][1]


MATRIX = (
    *(
        Case(name, mode, batch)
        for name, network in NETWORKS.items()
        for mode in network.modes
        for batch in (network.batch, MAX)
    ),
    Case("emore_r100", "partial_fc", 64, searches_identities=True),
)


def select(patterns: Sequence[str]) -> list[Case]:
    """The cases whose name begins with one of `patterns` or matches it (`*/64`).

    Raises:
        ValueError: No case matches a pattern, or it is empty.
    """
    chosen: dict[str, Case] = {}
    for pattern in patterns:
        found = [
            case
            for case in MATRIX
            if pattern and (case.name.startswith(pattern) or fnmatchcase(case.name, pattern))
        ]
        if not found:
            names = ", ".join(case.name for case in MATRIX)
            raise ValueError(f"no case {pattern!r}; the cases are {names}")
        chosen |= {case.name: case for case in found}
    return [case for case in MATRIX if case.name in chosen]
