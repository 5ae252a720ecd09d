"""Values of a JSON file as dataclasses, each checked against the field's type."""

import math
from dataclasses import MISSING, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints


def built(kind: Any, value: Any, where: str) -> Any:
    """`value`, as `json.loads` gives it, as an instance of `kind`.

    Args:
        kind: A dataclass, `list[...]`, `tuple[..., ...]`, `dict[str, ...]`, a union with None, int,
            float, str or Any.
        value: What the file holds.
        where: Name of the value in the file, for the error.

    Raises:
        ValueError: A value of another type, a number that is not finite, or a field that is missing
            or unknown. The text names the place in the file.
    """
    if kind is Any:
        return value
    if is_dataclass(kind):
        return _dataclass(kind, _require(dict, value, where), where)
    origin, inner = get_origin(kind), get_args(kind)
    if origin is UnionType:
        (other,) = (one for one in inner if one is not NoneType)
        return None if value is None else built(other, value, where)
    if origin is dict:
        items = _require(dict, value, where).items()
        return {name: built(inner[1], part, f"{where}.{name}") for name, part in items}
    if origin in (list, tuple):
        parts = enumerate(_require(list, value, where))
        return origin(built(inner[0], part, f"{where}[{place}]") for place, part in parts)
    return _require(kind, value, where)


def _dataclass(kind: Any, values: dict[str, Any], where: str) -> Any:
    known = {field.name: field for field in fields(kind)}
    if unknown := sorted(values.keys() - known.keys()):
        raise ValueError(f"{where} has an unknown field {unknown[0]!r:.60}")
    for name, field in known.items():
        required = field.default is MISSING and field.default_factory is MISSING
        if required and name not in values:
            raise ValueError(f"{where} has no field {name!r}")
    hints = get_type_hints(kind)
    return kind(
        **{name: built(hints[name], part, f"{where}.{name}") for name, part in values.items()}
    )


def _require(kind: type, value: Any, where: str) -> Any:
    accepted = (int, float) if kind is float else kind
    fits = isinstance(value, accepted) and (kind is bool or not isinstance(value, bool))
    if not fits or (isinstance(value, float) and not math.isfinite(value)):
        raise ValueError(f"{where} is {value!r:.60}, not a valid {_NAMES.get(kind, kind.__name__)}")
    return value


_NAMES = {dict: "object", list: "list", int: "whole number", float: "number", str: "text"}
