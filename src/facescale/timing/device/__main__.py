"""The process of a phase: python -m facescale.timing.device MODULE FILE DEVICE SIZES [ARGUMENT].

It imports everything, then waits for a line on stdin: when its share of the time ends.
"""

import sys
import time
from importlib import import_module
from pathlib import Path

import torch

from facescale.plan.limit import failure_of
from facescale.timing.device.bench import Bench, Notes
from facescale.timing.device.sizes import SIZES


def main(module: str, file: str, device_name: str, sizes: str, argument: str = "") -> None:
    """Run one phase; its outcome is written whatever happens to it, short of a signal.

    Without a line on stdin nothing is run: the benchmark has been killed.
    """
    device, failure = torch.device(device_name), None
    try:
        import_module(module)
    except Exception as error:
        failure = error
    until = sys.stdin.readline()
    if not until:  # who was to say so has ended
        return
    notes = Notes(Path(file), device, float(until) - time.time())
    try:
        if failure is not None:
            raise failure
        run = import_module(module).run
        if device.type == "cuda":
            device = torch.device(device.type, torch.cuda.current_device())
            torch.cuda.set_device(device)
        run(Bench(device, SIZES[sizes], notes, argument))
    except Exception as error:
        notes.save(*failure_of(error))
        raise
    notes.save("done")


if __name__ == "__main__":
    main(*sys.argv[1:])
