"""Signals that end a benchmark: it takes the processes along that it has started."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn


@contextmanager
def exit_on_signals() -> Iterator[None]:
    """Let SIGTERM, and SIGHUP of a terminal that is lost, raise SystemExit.

    By default they would end this process alone, and the trial that it waits for would run on.
    """
    from facescale.training.signals import heard_by

    with heard_by(_leave, (signal.SIGTERM, signal.SIGHUP)):
        yield


def _leave(number: int, _: FrameType | None) -> NoReturn:
    sys.exit(128 + number)
