"""The options of a `Config` by their dotted names, `optim.lr`."""

import dataclasses
from collections.abc import Iterator
from functools import cache
from operator import attrgetter
from typing import Any, get_type_hints

from facescale.config import Config


@cache
def fields(*, annotated: bool = False) -> dict[str, Any]:
    """Type of every option of a `Config`, by dotted name; `annotated` with its interval."""
    return dict(_walk(Config, "", annotated))


def values(config: Config) -> dict[str, Any]:
    """Value of every option of `config`, by dotted name."""
    return {name: attrgetter(name)(config) for name in fields()}


def _walk(section: type, prefix: str, annotated: bool) -> Iterator[tuple[str, Any]]:
    hints = get_type_hints(section, include_extras=annotated)
    for field in dataclasses.fields(section):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            yield from _walk(hint, f"{prefix}{field.name}.", annotated)  # type: ignore[arg-type]
        else:
            yield prefix + field.name, hint
