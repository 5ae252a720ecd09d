"""`facescale keys`: every key of a config."""

import argparse
import dataclasses
from typing import Any

from facescale.cli.options import default_of, docs, metavar, shown_default
from facescale.cli.parser import Parser
from facescale.config.fields import fields
from facescale.config.intervals import interval_of

USAGE = "facescale keys [WORD...] [--markdown]"
ABOUT = "With words, only the keys whose name or meaning has all of them."


def add_options(parser: Parser) -> None:
    """What the command understands."""
    parser.add_argument("words", metavar="WORD", nargs="*", help="to look for")
    parser.add_argument("--markdown", action="store_true", help="as docs/config.md has them")


def run(chosen: argparse.Namespace) -> None:
    """A line for each key: its values, its default, what it means."""
    keys = [key for key in all_keys() if key.has(chosen.words)]
    if not keys:
        words = " and ".join(chosen.words)
        raise ValueError(
            f"no key has {words} in its name or meaning; `facescale keys` lists them all"
        )
    if chosen.markdown:
        print(markdown(keys), end="")
        return
    from facescale.cli.terminal import escape, show, table

    shown = table("key", "values", "default", "meaning", left=4)
    for key in keys:
        shown.add_row(f"[bold]{key.name}[/]", *map(escape, (key.values, key.default, key.meaning)))
    show(shown)


@dataclasses.dataclass(frozen=True)
class KeyLine:
    """A key of a config, in words."""

    name: str
    values: str
    default: str
    """Empty where the key need not have a value."""
    meaning: str

    def has(self, words: list[str]) -> bool:
        """Whether each word is in the name or the meaning, in upper or lower case."""
        text = f"{self.name} {self.meaning}".lower()
        return all(word.lower() in text for word in words)


def all_keys() -> list[KeyLine]:
    """The keys in the order of `Config`."""
    return [_line(name, hint) for name, hint in fields(annotated=True).items()]


def _line(name: str, hint: Any) -> KeyLine:
    default = default_of(name)
    said = "" if default in (None, []) else shown_default(default)
    return KeyLine(name, _values(hint), said, docs()[name])


def _values(hint: Any) -> str:
    """The values that a key takes: `whole number, at least 1`."""
    names = {"N": "whole number", "X": "number", "TEXT": "text"}
    name = metavar(hint)
    kind = names.get(name, ", ".join(name.split("|")))
    interval = interval_of(hint)
    said = kind if interval is None or "number" not in kind else f"{kind}, {interval}"
    return f"list: {said}" if "list" in str(hint) else said.removesuffix(", a finite number")


def markdown(keys: list[KeyLine]) -> str:
    """Tables of keys, one a section."""
    parts = [
        "# Config keys\n\nEvery key can be set in a YAML file and on the command line, "
        "`--optim.lr 0.05`. A key without a default may be left out, or set to `null`. "
        "`facescale keys WORD` looks for a word; `facescale keys --markdown` wrote this page.\n"
    ]
    for section in dict.fromkeys(key.name.rpartition(".")[0] for key in keys):
        parts.append(f"\n## {section or 'Run'}\n\n| key | values | default | meaning |")
        parts.append("\n|---|---|---|---|\n")
        for key in keys:
            if key.name.rpartition(".")[0] == section:
                cells = (f"`{key.name}`", key.values, key.default and f"`{key.default}`")
                parts.append(f"| {' | '.join(cells)} | {key.meaning.replace('|', '/')} |\n")
    return "".join(parts)
