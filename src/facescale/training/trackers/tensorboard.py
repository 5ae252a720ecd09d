"""TensorBoard: event files in the folder `tensorboard` of a run; the extra `track`."""

from collections.abc import Mapping
from typing import Any

import yaml

from facescale.evaluation.verification import Verification
from facescale.training.trackers.tracker import Run, Tracker, register, require


@register("tensorboard")
class TensorBoard(Tracker):
    """Scalars under the names of metrics.jsonl; config and notes as texts."""

    _writer: Any = None

    def __init__(self) -> None:
        require("tensorboard", "tensorboard", "'facescale[track]'")

    def start(self, run: Run) -> None:
        """Open a file of events; those of later steps are purged."""
        from torch.utils.tensorboard import SummaryWriter  # loads tensorboard

        self._writer = SummaryWriter(str(run.output / "tensorboard"), purge_step=run.step + 1)
        config = yaml.safe_dump(dict(run.config), sort_keys=False)
        self._writer.add_text("config", f"```\n{config}\n```", run.step)

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        """A scalar each."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def verification(self, step: int, name: str, answer: Verification) -> None:
        """A scalar each, grouped by the set."""
        self.numbers(step, answer.metrics(name))

    def text(self, step: int, text: str) -> None:
        """Among the notes."""
        self._writer.add_text("notes", text, step)

    def close(self) -> None:
        """Write what is left."""
        if self._writer is not None:
            self._writer.close()
