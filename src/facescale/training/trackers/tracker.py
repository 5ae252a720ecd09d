"""What a tracker is, and the registry of them by name."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

from facescale.evaluation.verification import Verification


@dataclass(frozen=True)
class Run:
    """What a tracker is told when a run starts."""

    output: Path
    """Folder of the run; it exists."""
    config: Mapping[str, Any]
    """All options, nested as in config.yaml."""
    step: int
    """Finished steps: above 0 where the run was resumed."""
    num_steps: int


class Tracker:
    """A sink of figures: a file, a screen, a service. Override what it needs.

    Only rank 0 calls its methods; every rank makes one, so that a missing package ends the run on
    all ranks before any work. An OSError, such as a full disk, ends the run. Any other error ends
    the tracker, with a warning, and the run goes on.
    """

    def start(self, run: Run) -> None:
        """A run begins, or goes on from `run.step`: what was told of later steps is void."""

    def advance(self, step: int) -> None:
        """`step` steps are finished. Called in every step, so it must be fast."""

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        """The figures of the last steps: epoch, loss, lr, images_per_s, wait_s, peak_gib, ..."""

    def verification(self, step: int, name: str, answer: Verification) -> None:
        """The result on the verification set `name`; `answer.metrics(name)` has it as numbers."""

    def text(self, step: int, text: str) -> None:
        """A line that whoever started the run should know."""

    def close(self) -> None:
        """The run has ended, by an error too. Must not fail when `start` did."""


MakeTracker = Callable[[], Tracker]
_Made = TypeVar("_Made", bound=MakeTracker)

TRACKERS: dict[str, MakeTracker] = {}
"""What makes a tracker, by the name that `trackers` in a config gives."""


def register(name: str) -> Callable[[_Made], _Made]:
    """Add a tracker under `name`: `@register("mine")` above its class."""

    def add(make: _Made) -> _Made:
        TRACKERS[name] = make
        return make

    return add


def make_trackers(names: Iterable[str]) -> list[Tracker]:
    """The trackers of these names.

    Raises:
        ValueError: No such tracker.
        ImportError: The package that it needs is missing.
    """
    made = []
    for name in dict.fromkeys(names):
        if name not in TRACKERS:
            close = get_close_matches(name, TRACKERS, 1)
            hint = f", did you mean {close[0]}?" if close else ""
            raise ValueError(f"trackers: unknown {name!r}{hint}; there are {', '.join(TRACKERS)}")
        made.append(TRACKERS[name]())
    return made


def require(tracker: str, package: str, install: str) -> None:
    """Raise ImportError with the command that installs `package` where it is missing."""
    if find_spec(package) is None:
        raise ImportError(f"tracker {tracker} needs the package {package}: pip install {install}")
