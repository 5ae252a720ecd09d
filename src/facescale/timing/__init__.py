"""Benchmarks against the methods of other frameworks, by name: `head/360232/0.1`, `step/r100/8`.

A kind is a function from sizes to a `Case`. A case's name is the function's name and its arguments;
those with a default may be left out. A new kind is a module and a line in `KINDS`.
"""

import inspect
from collections.abc import Callable

from facescale.timing.heads import head
from facescale.timing.inference import inference
from facescale.timing.interleave import Case
from facescale.timing.loaders import loader
from facescale.timing.steps import backbone, step

KINDS: dict[str, Callable[..., Case]] = {
    "head": head,
    "backbone": backbone,
    "step": step,
    "loader": loader,
    "inference": inference,
}


def case_of(name: str, device: str = "cpu") -> Case:
    """The case of that name, on a device.

    Raises:
        ValueError: An unknown kind, sizes that do not fit it, or a kind that is not for the device.
    """
    kind, _, rest = name.partition("/")
    if kind not in KINDS:
        raise ValueError(f"no case {name!r}; there are {', '.join(map(usage, KINDS))}")
    sizes = _sizes(kind)
    texts = rest.split("/", len(sizes) - 1) if rest else []  # the last may be a path
    try:
        values = [s.annotation(text) for s, text in zip(sizes, texts, strict=False)]
        inspect.signature(KINDS[kind]).bind(*texts)
        fits = all(isinstance(value, str) or value > 0 for value in values)
    except (TypeError, ValueError):
        fits = False
    if not fits:
        raise ValueError(f"{name!r} does not fit; write {usage(kind)}")
    return KINDS[kind](*values, name=name, device=device)


def usage(kind: str) -> str:
    """`head/IDENTITIES[/RATE][/BATCH]`."""
    optional = [(s.name.upper(), s.default is not s.empty) for s in _sizes(kind)]
    return kind + "".join(f"[/{name}]" if default else f"/{name}" for name, default in optional)


def _sizes(kind: str) -> list[inspect.Parameter]:
    """The parameters of a kind that are part of its names."""
    parameters = inspect.signature(KINDS[kind]).parameters.values()
    return [p for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
