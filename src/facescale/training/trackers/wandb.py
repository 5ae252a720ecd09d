"""Weights & Biases, where its package is installed; `WANDB_MODE=offline` keeps a run local."""

import os
from collections.abc import Mapping
from typing import Any

from facescale.evaluation.verification import Verification
from facescale.training.trackers.tracker import Run, Tracker, register, require


@register("wandb")
class WandB(Tracker):
    """Figures under the names of metrics.jsonl. A resumed run goes on under its old id."""

    _run: Any = None

    def __init__(self) -> None:
        require("wandb", "wandb", "wandb")

    def start(self, run: Run) -> None:
        """Begin in project `facescale`, or the one that WANDB_PROJECT names."""
        import wandb

        id_file = run.output / "wandb_id"
        known = id_file.read_text() if run.step and id_file.is_file() else None
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "facescale"),
            name=run.output.name,
            dir=str(run.output),
            config=dict(run.config),
            id=known,
            resume="allow",
        )
        id_file.write_text(self._run.id)

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        """One record of the run's history."""
        self._run.log(dict(values), step=step)

    def verification(self, step: int, name: str, answer: Verification) -> None:
        """Added to the record of the step."""
        self.numbers(step, answer.metrics(name))

    def close(self) -> None:
        """Send what is left."""
        if self._run is not None:
            self._run.finish()
