"""Options that commands share which take a preset and every field of `Config`."""

import argparse
import ast
import inspect
from functools import cache
from itertools import pairwise
from typing import Any, Literal, get_args, get_origin

from facescale.cli.layers import (
    Layer,
    build,
    merge,
    parse_layer,
    preset_path,
    read_layer,
    sections,
)
from facescale.cli.parser import Parser, answer
from facescale.cli.values import convert
from facescale.config import Config, Section
from facescale.config.fields import fields


def add_config_options(parser: Parser) -> None:
    """The preset, and every field of `Config` by its dotted name, grouped by section.

    Only options that the user gives are in what the parser returns, so that they can be laid over
    a preset.
    """
    parser.add_argument("preset", metavar="PRESET", help="a name, or a YAML file: RUN/config.yaml")
    general = parser.add_argument_group("all options", "Defaults are in brackets.")
    general.add_argument("--config", action="append", metavar="FILE", help="one more YAML file")
    general.add_argument("--print_config", action="store_true", help="show the config and exit")
    groups = {"": general}
    for name in fields():
        section = name.partition(".")[0] if "." in name else ""
        if section not in groups:
            groups[section] = parser.add_argument_group(section, _section_doc(section))
        _add(groups[section], name)
    for section in sections():  # a whole section as YAML: --optim.schedule '{kind: cosine}'
        parser.add_argument(f"--{section}", dest=section, default=argparse.SUPPRESS, help=_HIDE)


_HIDE = argparse.SUPPRESS


def _add(group: Any, name: str) -> None:
    hint, default = fields()[name], default_of(name)
    said = "" if default in (None, []) else f" [{shown_default(default)}]"
    group.add_argument(
        f"--{name}",
        dest=name,
        default=argparse.SUPPRESS,
        metavar=metavar(hint),
        nargs="+" if get_origin(hint) is list else None,
        help=(docs().get(name, "") + said).replace("%", "%%"),
    )


def metavar(hint: Any) -> str:
    """Of an option of this type: N, X, TEXT, or its values."""
    if get_origin(hint) is Literal:
        return "|".join(get_args(hint))
    if get_origin(hint) is list:
        return metavar(get_args(hint)[0])
    names = {bool: "true|false", int: "N", float: "X", str: "TEXT"}
    inner = [kind for kind in get_args(hint) if kind is not type(None)]
    return names[hint] if hint in names else metavar(inner[0])


def shown_default(default: Any) -> str:
    """A default as an option would give it."""
    if isinstance(default, list):
        return " ".join(map(str, default))
    return str(default).lower() if isinstance(default, bool) else f"{default}"


def default_of(name: str) -> Any:
    """The default of a key of `Config`."""
    value: Any = Config()
    for part in name.split("."):
        value = getattr(value, part)
    return value


@cache
def docs() -> dict[str, str]:
    """The line below each field of the config's classes, by the option's dotted name."""
    docs = {}
    for section in Section.__subclasses__():
        (definition,) = ast.parse(inspect.getsource(section)).body
        assert isinstance(definition, ast.ClassDef)
        for line, below in pairwise(definition.body):
            if isinstance(line, ast.AnnAssign) and isinstance(below, ast.Expr):
                assert isinstance(line.target, ast.Name)
                text = str(ast.literal_eval(below.value)).strip().split("\n\n")[0]
                docs[section.prefix + line.target.id] = " ".join(text.split())
    return docs


def _section_doc(section: str) -> str:
    kind = type(getattr(Config(), section))
    return (kind.__doc__ or "").split("\n")[0]


def read_config(chosen: argparse.Namespace, *, keep_sizes: bool = False) -> Config:
    """The config that the options describe: the preset, YAML files over it, options over both.

    Raises:
        ValueError, FileNotFoundError: As `layers` raises them.
    """
    layers = [read_layer(preset_path(chosen.preset))]
    for name in chosen.config or []:
        layers.append(read_layer(preset_path(name)))
    given = vars(chosen)
    for section in sorted(sections() & set(given)):
        layers.append(parse_layer(given[section], f"--{section}", f"{section}."))
    own: Layer = {
        name: convert(given[name], hint, f"--{name}")
        for name, hint in fields().items()
        if name in given
    }
    config: Config = build(merge([*layers, own], keep_sizes=keep_sizes))
    if chosen.print_config:
        answer(config.to_yaml())
    return config
