"""YAML as plain values, from files of strangers too: limited, and nothing in it is executed."""

from collections import Counter
from pathlib import Path
from typing import Any

import yaml

MAX_BYTES = 1 << 20
"""Of a file."""
MAX_NODES = 100_000
"""Values that a text may have when its aliases are unfolded."""


def read_yaml(path: Path) -> Any:
    """The values in a file; None if it is empty.

    Raises:
        ValueError: It is too large, or `parse_yaml` refuses it; the message begins with the path.
        OSError: It cannot be read.
    """
    try:
        text = read_short(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}") from error
    return parse_yaml(text, str(path))


def read_short(path: Path) -> bytes:
    """The content of a config.

    Raises:
        ValueError: It has more than `MAX_BYTES`.
        OSError: It cannot be read.
    """
    with path.open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ValueError(f"{path} is larger than {MAX_BYTES >> 20} MiB; a config is a short file")
    return content


def parse_yaml(text: str, source: str) -> Any:
    """The values in a text; None if it is empty.

    Raises:
        ValueError: It is not YAML, nested too deeply, unfolds to too many values, or sets a key
            twice. The message begins with `source`.
    """
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if node is None:
            return None
        _count(node, {}, source)
        return _construct(node, source)
    except yaml.YAMLError as error:
        raise ValueError(f"{source} is not YAML: {error}") from error
    except RecursionError:
        raise ValueError(f"{source} is nested too deeply") from None


def _construct(node: yaml.Node, source: str) -> Any:
    loader = yaml.SafeLoader("")
    try:
        return loader.construct_document(node)
    # PyYAML's own of a date such as 2026-13-01, or of a wrong tag: `!!int x`, `!!bool x`
    except (ValueError, LookupError, AttributeError) as error:
        raise ValueError(f"{source} has a value that is not of its YAML type: {error}") from error
    finally:
        loader.dispose()


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
