"""Values of options, from YAML or from a command line, as the types that a config asks for."""

import types
from collections import Counter
from typing import Any, Literal, Union, get_args, get_origin

import yaml

MAX_NODES = 100_000
"""Values that a YAML text may have when its aliases are unfolded."""


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


def parse_yaml(text: str, source: str) -> Any:
    """YAML as plain values; limited, and without duplicate keys."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if node is None:
            return None
        _count(node, {}, source)
        loader = yaml.SafeLoader("")
        try:
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        raise ValueError(f"{source} is not YAML: {error}") from error
    except RecursionError:
        raise ValueError(f"{source} is nested too deeply") from None


def _count(node: yaml.Node, sizes: dict[int, int], source: str) -> int:
    """How many nodes there are below `node` once its aliases are unfolded."""
    key = id(node)
    if key in sizes:
        if sizes[key] == 0:
            raise ValueError(f"{source} has an alias that holds itself")
        return sizes[key]
    sizes[key] = 0  # until its children are counted
    children: list[yaml.Node] = []
    if isinstance(node, yaml.SequenceNode):
        children = node.value
    elif isinstance(node, yaml.MappingNode):
        keys = Counter(name.value for name, _ in node.value if isinstance(name, yaml.ScalarNode))
        if twice := [name for name, count in keys.items() if count > 1 and name != "<<"]:
            raise ValueError(f"{source} sets {', '.join(twice)} twice in one section")
        children = [child for pair in node.value for child in pair]
    total = 1 + sum(_count(child, sizes, source) for child in children)
    if total > MAX_NODES:
        raise ValueError(f"{source} unfolds to more than {MAX_NODES:,} values; use fewer aliases")
    sizes[key] = total
    return total
