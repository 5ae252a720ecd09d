"""The best checkpoint of a run, by its accuracy on one verification set: `checkpoints/best.json`.

The file holds every result, so that a run that resumes from any of its checkpoints knows what was
best up to there.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from facescale.checkpoint import folder, record
from facescale.files import write_whole

NAME = "best.json"
"""In the folder of the checkpoints."""


@dataclass
class Best:
    """Results of a run on one verification set.

    Attributes:
        pairs: Name of the set.
        results: Step and accuracy of each verification, by rising step.
    """

    pairs: str
    results: list[tuple[int, float]] = field(default_factory=list)

    @property
    def place(self) -> int:
        """Place of the highest accuracy in `results`, the first of equal ones; -1 without any."""
        accuracies = [accuracy for _, accuracy in self.results]
        return accuracies.index(max(accuracies)) if accuracies else -1

    @property
    def step(self) -> int | None:
        """Step of the highest accuracy; None without results."""
        return self.results[self.place][0] if self.results else None

    @property
    def accuracy(self) -> float | None:
        """The highest accuracy; None without results."""
        return self.results[self.place][1] if self.results else None

    @property
    def without_gain(self) -> int:
        """Number of verifications since the best one."""
        return len(self.results) - 1 - self.place

    def add(self, step: int, accuracy: float) -> bool:
        """Add the result at a later step; returns whether it is the best so far."""
        self.results.append((step, accuracy))
        return self.step == step

    def forget_after(self, step: int) -> None:
        """Drop the results of later steps, which will be taken again."""
        self.results = [result for result in self.results if result[0] <= step]

    def values(self) -> dict[str, Any]:
        """Plain values, fit for JSON; the best result comes first, for readers."""
        return {
            "set": self.pairs,
            "step": self.step,
            "accuracy": self.accuracy,
            "results": self.results,
        }

    @classmethod
    def from_values(cls, values: dict[str, Any]) -> "Best":
        """What `values` gave; ValueError where something is missing or ill-typed."""
        pairs, results = values.get("set"), values.get("results")
        if not isinstance(pairs, str) or not isinstance(results, list):
            raise ValueError("set or results is missing")
        for result in results:
            if not isinstance(result, list) or [type(part) for part in result] != [int, float]:
                raise ValueError(f"{result!s:.60} is not a step and an accuracy")
        return cls(pairs, [(step, accuracy) for step, accuracy in results])


def read(saved: Path) -> Best | None:
    """The results in the checkpoints' folder; None where there are none.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is damaged.
    """
    path = saved / NAME
    if not path.exists():
        return None
    try:
        return Best.from_values(record.read_json(path))
    except ValueError as error:
        raise ValueError(f"{path}: {error}; remove it to begin anew") from error


def write(saved: Path, best: Best) -> None:
    """Write the results into the checkpoints' folder."""
    saved.mkdir(parents=True, exist_ok=True)
    write_whole(saved / NAME, [json.dumps(best.values(), indent=1).encode()])


def choose(run: Path, which: str) -> Path:
    """The checkpoint of a run: `last`, `best`, or that of a step.

    Raises:
        FileNotFoundError: There is none.
        ValueError: `which` is none of them.
    """
    if which == "last":
        return folder.last(run)
    saved = run / "checkpoints"
    if which == "best":
        found = read(saved)
        if found is None or found.step is None:
            raise FileNotFoundError(
                f"{run} has no best checkpoint; train with --checkpoint.best SET to keep one"
            )
        which = str(found.step)
    if not which.isdecimal():
        raise ValueError(f"a checkpoint is last, best or a step, got {which!r}")
    path = saved / folder.step_name(int(which))
    if not path.is_dir():
        there = ", ".join(str(int(p.name[5:])) for p in folder.checkpoints(saved)) or "none"
        raise FileNotFoundError(f"{run} has no checkpoint of step {which}; there are {there}")
    return path
