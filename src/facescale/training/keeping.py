"""Between steps: checkpoints, verifications, which checkpoint is best, and stopping early."""

import json
from collections.abc import Iterator
from contextlib import contextmanager

from facescale.checkpoint import best as best_file
from facescale.checkpoint.best import Best
from facescale.checkpoint.folder import step_name
from facescale.distributed import Group, agree
from facescale.evaluation.verification import Verification
from facescale.training.evaluate import evaluate
from facescale.training.finite import settle
from facescale.training.lock import RunFolder
from facescale.training.metrics import read_metrics
from facescale.training.resume import save
from facescale.training.state import TrainState
from facescale.training.trackers import Trackers


class Keeper:
    """Saves and verifies a run when that is due.

    Attributes:
        best: Results on the set of `checkpoint.best`; None where that is not given.
        verifications: The last results, by name of the set.
    """

    def __init__(self, state: TrainState, folder: RunFolder, trackers: Trackers) -> None:
        """Read the results up to the step of `state`. A collective.

        Raises:
            OSError, ValueError: They are there but cannot be read; on every rank alike.
        """
        self._state, self._folder, self._trackers = state, folder, trackers
        self._saved = folder.folder / "checkpoints"
        self.verifications: dict[str, Verification] = {}
        self.best = self._read()

    @property
    def stops_early(self) -> bool:
        """Whether so many verifications brought no gain that the run ends."""
        patience = self._state.config.evaluation.patience
        if patience is None or self.best is None:
            return False
        return self.best.without_gain >= patience

    def keep(self, leaving: bool) -> None:
        """Save and verify if that is due after this step. A collective.

        Args:
            leaving: The run was asked to leave: it saves and does not verify.

        Raises:
            OSError: A file could not be written; on every rank alike.
        """
        state, config = self._state, self._state.config
        saves = due(state, config.checkpoint.every) or leaving
        verifies = due(state, config.evaluation.every) and not leaving
        if saves or verifies:
            settle(state)
        if saves:
            self._save()
        if verifies and (self._verify() or self.stops_early) and not saves:
            self._save()

    def catch_up(self) -> None:
        """Verify the checkpoint that the run resumes from if it has no result. A collective.

        Raises:
            OSError, ValueError: `metrics.jsonl` cannot be read, or a file not be written; on every
                rank alike.
        """
        state = self._state
        if state.pairs and due(state, state.config.evaluation.every) and self._lacks_result():
            self._verify()

    def _save(self) -> None:
        with all_are_told(self._state.world):
            self._folder.check()
        save(self._state, self._folder.folder, None if self.best is None else self.best.step)

    def _read(self) -> Best | None:
        chosen, state = self._state.config.checkpoint.best, self._state
        if chosen is None:
            return None
        text = ""
        with state.world.all_or_none():
            if state.world.rank == 0:
                found = best_file.read(self._saved)
                if found is None or found.pairs != chosen:
                    found = Best(chosen)
                found.forget_after(state.step)
                text = json.dumps(found.values())
        return Best.from_values(json.loads(agree(text)))

    def _lacks_result(self) -> bool:
        """Whether the checkpoint of this step has not been verified. Rank 0 looks."""
        step, said = self._state.step, ""
        with self._state.world.all_or_none():
            if self._state.world.rank == 0 and (self._saved / step_name(step)).is_dir():
                rows = read_metrics(self._folder.folder / "metrics.jsonl")
                names = {name for row in rows if row["step"] == step for name in row}
                known = any(name.endswith("/accuracy") for name in names)
                known |= self.best is not None and step in dict(self.best.results)
                said = "" if known else "no result"
        return bool(agree(said))

    def _verify(self) -> bool:
        """Verify, and note the result; returns whether it is the best so far."""
        state, best = self._state, self.best
        self.verifications = evaluate(state, self._trackers)
        if best is None:
            return False
        own = self.verifications.get(best.pairs)
        # rank 0 decides: on unlike hosts the figures may differ in their last digit
        accuracy = agree("" if own is None else repr(own.accuracy))
        if not accuracy:
            return False
        is_best = best.add(state.step, float(accuracy))
        with all_are_told(state.world):
            if state.world.rank == 0:
                best_file.write(self._saved, best)
        if self.stops_early:
            self._trackers.text(
                f"stopping at step {state.step}: {best.without_gain} verifications on {best.pairs} "
                f"without gain over {best.accuracy:.5f} at step {best.step}"
            )
        return is_best


@contextmanager
def all_are_told(world: Group) -> Iterator[None]:
    """What one rank cannot write inside the block fails on all, with what to do about it."""
    try:
        with world.all_or_none():
            yield
    except OSError as error:
        raise OSError(f"{error}; mend that, and go on with --resume") from error


def due(state: TrainState, every: int | None) -> bool:
    """Whether something that happens `every` so many steps happens now; all happens at the end."""
    return state.step == state.num_steps or (every is not None and state.step % every == 0)


def check_best(state: TrainState) -> None:
    """ValueError where `checkpoint.best` names none of the run's verification sets."""
    chosen, names = state.config.checkpoint.best, [pairs.name for pairs in state.pairs]
    if chosen is not None and chosen not in names:
        there = f"they are {', '.join(names)}" if names else "there are none"
        raise ValueError(f"checkpoint.best is {chosen}, not one of evaluation.sets; {there}")
