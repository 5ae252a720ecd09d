"""Values of options, from YAML or from a command line, as the types that a config asks for."""

import types
from typing import Any, Literal, Union, get_args, get_origin

from facescale.config.plain_yaml import parse_yaml


def convert(value: Any, hint: Any, name: str) -> Any:
    """A value from YAML, or text from a command line, as the type `hint`.

    Raises:
        ValueError: It does not fit; the message begins with `name`.
    """
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        if value in (None, "null"):
            return None
        kinds = [kind for kind in get_args(hint) if kind is not type(None)]
        is_list = isinstance(value, list) or str(value).startswith("[")
        fitting = [kind for kind in kinds if (get_origin(kind) is list) == is_list]
        return convert(value, (fitting or kinds)[0], name)
    if origin is Literal:
        if value not in get_args(hint):
            raise ValueError(f"{name} is {value!r}; choose one of {', '.join(get_args(hint))}")
        return value
    if origin is list:
        items = value if isinstance(value, list) else [value]
        if len(items) == 1 and isinstance(items[0], str) and items[0].startswith("["):
            items = parse_yaml(items[0], name)
        return [convert(item, get_args(hint)[0], name) for item in items]
    return _scalar(value, hint, name)


def _scalar(value: Any, kind: type, name: str) -> Any:
    if kind is bool and isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if kind in (bool, str) and isinstance(value, kind) and value != "":
        return value
    if kind in (int, float) and not isinstance(value, bool):
        try:
            number = kind(value)
        except (TypeError, ValueError, OverflowError):
            number = None
        if number is not None and (isinstance(value, str) or number == value or value != value):
            return number
    wanted = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}[kind]
    raise ValueError(f"{name} is {value!r}; give {wanted}")
