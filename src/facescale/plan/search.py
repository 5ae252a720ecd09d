"""The largest whole number that still fits: grow until it does not, then halve the gap."""

from collections.abc import Callable


def largest(fits: Callable[[int], bool], start: int, *, precision: float = 0.0) -> int:
    """The largest `n` for which `fits(n)`; 0 where not even 1 does.

    `fits` must be true below some bound and false above it. The search doubles from `start`, then
    bisects until the gap is at most `precision` of the answer, so that each try, be it a whole
    training process, counts.

    Args:
        fits: Whether `n`, at least 1, fits.
        start: First try, at least 1.
        precision: Relative gap to stop at; 0 finds the exact bound.
    """
    if start < 1:
        raise ValueError(f"start must be at least 1, got {start}")
    fitting, failing = 0, start
    while fits(failing):
        fitting, failing = failing, 2 * failing
    while failing - fitting > max(1, precision * fitting):
        middle = (fitting + failing) // 2
        if fits(middle):
            fitting = middle
        else:
            failing = middle
    return fitting
