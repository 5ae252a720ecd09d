"""One trial: steps of the real trainer under a limit of memory.

No verification, checkpoint or plot; the result is `metrics.jsonl` or `failure-RANK.json`.
"""

import json
import os
import traceback
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

import torch

from facescale.config import Config
from facescale.distributed import processes
from facescale.plan.limit import failure_of, limit_memory
from facescale.training.keeping import due
from facescale.training.loop import report
from facescale.training.metrics import Tally, Window
from facescale.training.state import build
from facescale.training.step import train_step
from facescale.training.trackers import Run, Trackers


def run_trial(config: Config, output: Path, memory: int | None = None) -> None:
    """Train all steps of `config`. Every rank calls this.

    Args:
        config: What to train.
        output: Folder for `metrics.jsonl`.
        memory: Limit of this rank in bytes; see `limit_memory`.
    """
    output.mkdir(parents=True, exist_ok=True)
    try:
        with processes(config.device, config.timeout_s) as device:
            if memory is not None:
                limit_memory(memory, device)
            _train(config, output, device)
    except Exception as error:
        _note_failure(output, error)
        raise


def _train(config: Config, output: Path, device: torch.device) -> None:
    state = build(config, device)
    tally, window = Tally(device, state.world, state.groups()), Window()
    trackers = Trackers(["console", "jsonl"], rank=state.world.rank)
    trackers.start(Run(output, asdict(config), 0, state.num_steps))
    with closing(trackers), state.loader() as loader:
        while state.step < state.num_steps:
            tally.add_(train_step(state, next(loader)))
            window.add(state.global_batch)
            trackers.advance()
            if due(state, config.log_every):
                report(state, trackers, loader, tally, window)


def _note_failure(output: Path, error: Exception) -> None:
    """Write why this rank ended, for the process that started it."""
    kind, reason = failure_of(error)
    note = {"kind": kind, "reason": reason, "trace": traceback.format_exc()}
    rank = os.environ.get("RANK", "0")
    (output / f"failure-{rank}.json").write_text(json.dumps(note))
