"""Layers of options: a preset, YAML files over it, the command line over those, then a `Config`.

A layer is a flat mapping from dotted names to values of the right type, `{"optim.lr": 0.1}`.
Nothing in a file is executed or imported.
"""

from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

from facescale.cli.values import convert
from facescale.config import PRESETS, Config
from facescale.config.fields import fields
from facescale.config.plain_yaml import parse_yaml, read_yaml

Layer = dict[str, Any]

_SECTIONS = "the sections data, backbone, head, optim, train, start, evaluation, checkpoint"


@cache
def sections() -> set[str]:
    """Dotted names of all sections: `head`, `head.margin`, ..."""
    names = (name.split(".")[:-1] for name in fields())
    return {".".join(parts[:depth]) for parts in names for depth in range(1, len(parts) + 1)}


def presets() -> dict[str, Path]:
    """The presets that come with this package, by name."""
    return {path.stem: path for path in sorted(PRESETS.glob("*.yaml"))}


def preset_path(name: str) -> Path:
    """The YAML of a preset or of an earlier run.

    Raises:
        FileNotFoundError: `name` is neither a preset nor a file.
        ValueError: It is a Python file, such as arcface_torch's configs.
    """
    path = presets().get(name, Path(name))
    if path.suffix == ".py":
        raise ValueError(
            f"{name} is a Python config, as arcface_torch has them, and is not run; convert it "
            f"with `facescale import config {name} OUT.yaml`"
        )
    if path.is_dir() and (path / "config.yaml").is_file():
        raise ValueError(f"{name} is a run folder; give its config, {path / 'config.yaml'}")
    if not path.exists() and not path.is_symlink():
        close = get_close_matches(name, presets(), 1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise FileNotFoundError(
            f"{name} is neither a preset (`facescale presets` lists them) nor a YAML file{hint}"
        )
    return path


def read_layer(path: Path) -> Layer:
    """The options that a YAML file sets.

    Raises:
        ValueError: It is no YAML, too large, or what it sets is not an option or not of its type.
        OSError: It cannot be read.
    """
    return _layer(read_yaml(path), str(path))


def parse_layer(text: str, source: str, prefix: str = "") -> Layer:
    """The options that YAML text sets, below `prefix`; `source` is what errors call it."""
    return _layer(parse_yaml(text, source), source, prefix)


def _layer(values: Any, source: str, prefix: str = "") -> Layer:
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ValueError(f"{source} must be a mapping with {_SECTIONS}")
    return dict(_flatten(values, prefix, source))


def _flatten(values: Mapping[Any, Any], prefix: str, source: str) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        name = f"{prefix}{key}"
        if name in sections():
            if isinstance(value, dict):
                yield from _flatten(value, f"{name}.", source)
            elif value is not None:
                raise ValueError(f"{source}: {name} is a section; give its options below it")
        elif name in fields():
            yield name, convert(value, fields()[name], f"{source}: {name}")
        else:
            close = get_close_matches(name, [*fields(), *sections()], 1)
            hint = f"did you mean {close[0]}?" if close else "`facescale keys` lists them"
            raise ValueError(f"{source}: there is no option {name}; {hint}")


_IN_PLACE_OF = {"train.epochs": "train.steps", "train.batch_size": "train.global_batch_size"}
"""Options that would have no effect beside another one."""


def merge(layers: Iterable[Layer], *, keep_sizes: bool = False) -> Layer:
    """The options of all layers; a later one wins.

    Three options replace others of earlier layers: `train.epochs` the number of steps,
    `train.batch_size` the global batch, and `data.path` the sizes of the data, which belong to
    another set. With `keep_sizes` those sizes stay.
    """
    merged: Layer = {}
    for layer in layers:
        for name, replaced in _IN_PLACE_OF.items():
            if layer.get(name) is not None and layer.get(replaced) is None:
                merged.pop(replaced, None)
        if layer.get("data.path") not in (None, "synthetic") and not keep_sizes:
            for name in ("data.num_classes", "data.num_images"):
                merged.pop(name, None)
        merged.update(layer)
    return merged


def build(options: Layer, section: Any = Config) -> Any:
    """A config, or a section of one, with `options` over its defaults; ValueError as it raises."""
    hints = get_type_hints(section)
    values = {name: value for name, value in options.items() if "." not in name}
    for part in {name.partition(".")[0] for name in options if "." in name}:
        below = {
            name.removeprefix(f"{part}."): value
            for name, value in options.items()
            if name.startswith(f"{part}.")
        }
        values[part] = build(below, hints[part])
    return section(**values)
