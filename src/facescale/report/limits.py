"""Search for the largest batch and the most identities; each try is real steps in a process."""

from collections.abc import Callable

from facescale.plan.limit import OUT_OF_MEMORY
from facescale.plan.search import largest
from facescale.report.record import DONE, Cell, Run


class Undecided(Exception):
    """A try failed for another reason than memory, so it says nothing about the limit."""


def search_limit(
    cell: Cell,
    attempt: Callable[[int], Run],
    *,
    start: int,
    precision: float,
    save: Callable[[], None],
) -> int:
    """The largest number whose trial fits; tries are kept in `cell` and not repeated.

    Args:
        cell: Gets the tries and the result.
        attempt: Trains a few steps with a number and returns the outcome.
        start: First number.
        precision: Relative gap to stop at.
        save: Called after each try.

    Raises:
        Undecided: A try failed for another reason than memory.
    """
    known = {run.number: run for run in cell.tries}

    def fits(number: int) -> bool:
        run = known.get(number)
        if run is None:
            run = attempt(number)
            if run.outcome in (DONE, OUT_OF_MEMORY):
                cell.tries.append(run)
                save()
        if run.outcome not in (DONE, OUT_OF_MEMORY):
            raise Undecided(f"{number:,}: {run.outcome}: {run.reason}".rstrip(": "))
        return run.outcome == DONE and within_limit(run, cell.memory)

    cell.found = largest(fits, start, precision=precision)
    save()
    return cell.found


def within_limit(run: Run, memory: int | None) -> bool:
    """Whether the peak memory is within the limit; the kernel's limit does not count libraries."""
    return memory is None or run.peak_gib is None or run.peak_gib * 2**30 <= memory
