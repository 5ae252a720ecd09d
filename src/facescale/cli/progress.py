"""How far a long command is, on stderr: one line that is rewritten, or a line now and then."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar

EVERY_S = {True: 0.5, False: 30.0}
"""Seconds between two lines, on a terminal and in a log."""


class Sized(Protocol):
    """Anything with a length."""

    def __len__(self) -> int: ...


Batch = TypeVar("Batch", bound=Sized)


def show_progress(
    batches: Iterable[Batch], total: int, what: str = "images", shown: bool = True
) -> Iterator[Batch]:
    """Pass `batches` on, and say from time to time how many of `total` rows have come by.

    Args:
        batches: Anything with a length, such as tensors of rows.
        total: Rows of all batches together.
        what: What a row is.
        shown: False passes the batches on and says nothing: for all ranks but the first.
    """
    terminal = sys.stderr.isatty()
    begin = last = time.monotonic()
    done = 0
    try:
        for batch in batches:
            yield batch
            done += len(batch)
            now = time.monotonic()
            if shown and now - last >= EVERY_S[terminal]:
                last = now
                _say(done, total, now - begin, what, terminal)
    finally:  # an error is told on a line of its own
        if shown and terminal and last > begin:
            sys.stderr.write("\r\x1b[K")


def _say(done: int, total: int, seconds: float, what: str, terminal: bool) -> None:
    rate = done / seconds
    minutes, rest = divmod(round((total - done) / rate), 60)
    line = f"{done:,} of {total:,} {what}, {rate:,.0f}/s, {minutes}:{rest:02d} left"
    sys.stderr.write(f"\r\x1b[K{line}" if terminal else f"{line}\n")
    sys.stderr.flush()
