"""Names and shapes of a network's tensors: how those in a file differ from those expected."""

from collections.abc import Mapping

from torch import Tensor

Shapes = Mapping[str, tuple[int, ...]]


def shapes_of(tensors: Mapping[str, Tensor]) -> Shapes:
    """The shape of each tensor by name."""
    return {name: tuple(value.shape) for name, value in tensors.items()}


def differences(expected: Shapes, found: Shapes, shown: int = 5) -> str:
    """What is missing, unexpected, or of another shape in `found`: a few of them, and how many.

    Empty where both agree.
    """
    problems = [f"{printable(name)} is missing" for name in expected.keys() - found.keys()]
    problems += [f"{printable(name)} is unexpected" for name in found.keys() - expected.keys()]
    problems += [
        f"{printable(name)} has shape {found[name]}, not {expected[name]}"
        for name in expected.keys() & found.keys()
        if found[name] != expected[name]
    ]
    more = f" and {len(problems) - shown} more" if len(problems) > shown else ""
    return ", ".join(sorted(problems)[:shown]) + more


def num_differences(expected: Shapes, found: Shapes) -> int:
    """How many tensors are missing, unexpected or of another shape."""
    shared = expected.keys() & found.keys()
    unequal = sum(expected[name] != found[name] for name in shared)
    return len(expected.keys() ^ found.keys()) + unequal


def printable(name: str) -> str:
    """A name from a file, fit for a terminal and for a line."""
    return "".join(c if c.isprintable() else "?" for c in name[:80])
