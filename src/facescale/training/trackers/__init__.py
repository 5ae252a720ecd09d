"""Where a run reports: one list of trackers, such as console, jsonl and TensorBoard.

A new one is a class in a file of its own with `@register("name")` above it, named in the config's
`trackers`.
"""

import logging
from collections.abc import Callable, Iterable, Mapping

from facescale.evaluation.verification import Verification
from facescale.training.trackers.console import Console
from facescale.training.trackers.jsonl import Jsonl
from facescale.training.trackers.tensorboard import TensorBoard
from facescale.training.trackers.tracker import Run, Tracker, make_trackers, register
from facescale.training.trackers.wandb import WandB

__all__ = [
    "Console",
    "Jsonl",
    "Run",
    "TensorBoard",
    "Tracker",
    "Trackers",
    "WandB",
    "register",
]

_log = logging.getLogger(__name__)


class Trackers:
    """All trackers of a run as one, and the step that it is at. Rank 0 alone speaks."""

    def __init__(self, names: Iterable[str], *, rank: int) -> None:
        """Make the trackers; ValueError or ImportError says which one cannot be."""
        made = make_trackers(names)
        self._trackers = made if rank == 0 else []
        self.step = 0

    def start(self, run: Run) -> None:
        """Begin at `run.step`."""
        self.step = run.step
        self._all(lambda tracker: tracker.start(run))

    def advance(self) -> None:
        """One step is done."""
        self.step += 1
        self._all(lambda tracker: tracker.advance(self.step))

    def numbers(self, values: Mapping[str, float]) -> None:
        """The figures of the last steps: epoch, loss, lr, images_per_s, ..."""
        self._all(lambda tracker: tracker.numbers(self.step, values))

    def verification(self, name: str, answer: Verification) -> None:
        """The result on a verification set."""
        self._all(lambda tracker: tracker.verification(self.step, name, answer))

    def text(self, text: str) -> None:
        """Something that whoever started the run should know."""
        self._all(lambda tracker: tracker.text(self.step, text))

    def close(self) -> None:
        """The run has ended."""
        self._all(lambda tracker: tracker.close())

    def _all(self, tell: Callable[[Tracker], None]) -> None:
        """Tell every tracker; one that fails is dropped, for a service may not end a run."""
        failed: list[tuple[Tracker, Exception]] = []
        for tracker in self._trackers:
            try:
                tell(tracker)
            except OSError:
                raise
            except Exception as error:
                _log.debug("tracker %s failed", type(tracker).__name__, exc_info=True)
                failed.append((tracker, error))
        for tracker, _ in failed:
            self._trackers.remove(tracker)
        for tracker, fault in failed:  # now that all others have been told, by `start` for example
            why = f"{type(fault).__name__}: {fault}"
            self.text(f"tracker {type(tracker).__name__} is left out from now on: {why}")
