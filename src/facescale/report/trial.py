"""One trial: steps of the real trainer under a limit of memory.

No verification, checkpoint or plot; the result is `metrics.jsonl` or `failure-RANK.json`.
"""

import json
import os
import resource
import sys
import traceback
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

import torch

from facescale.config import Config
from facescale.distributed import processes
from facescale.training.keeping import due
from facescale.training.loop import report
from facescale.training.metrics import Tally, Window
from facescale.training.state import build
from facescale.training.step import train_step
from facescale.training.trackers import Run, Trackers

OUT_OF_MEMORY = "out of memory"
_SIGNS = (
    *("can't allocate memory", "cannot allocate memory", "bad_alloc", "out of memory"),
    "could not create a primitive",  # oneDNN's message if an allocation fails
)


def run_trial(config: Config, output: Path, memory: int | None = None) -> None:
    """Train all steps of `config`. Every rank calls this.

    Args:
        config: What to train.
        output: Folder for `metrics.jsonl`.
        memory: Limit of this rank in bytes, enforced by the kernel; on CUDA the card is the limit.
    """
    output.mkdir(parents=True, exist_ok=True)
    try:
        if memory is not None:
            limit_memory(memory)
        with processes(config.device, config.timeout_s) as device:
            _train(config, output, device)
    except Exception as error:
        _note_failure(output, error)
        raise


def limit_memory(count: int) -> None:
    """Make allocations beyond `count` bytes fail.

    RLIMIT_DATA counts heap and private writable mappings, touched or not. RLIMIT_AS would count
    libraries and reserved address space too, of which a torch process has gigabytes.
    """
    if not sys.platform.startswith("linux"):
        raise ValueError("a limit of memory on the CPU needs Linux; leave out --memory")
    resource.setrlimit(resource.RLIMIT_DATA, (count, count))


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
    lines = str(error).strip().splitlines() or [type(error).__name__]
    note = {
        "kind": OUT_OF_MEMORY if is_out_of_memory(error) else "error",
        "reason": f"{type(error).__name__}: {lines[0]}"[:300],
        "trace": traceback.format_exc(),
    }
    rank = os.environ.get("RANK", "0")
    (output / f"failure-{rank}.json").write_text(json.dumps(note))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, in torch, numpy, a library or CUDA."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return any(sign in str(error).lower() for sign in _SIGNS)
