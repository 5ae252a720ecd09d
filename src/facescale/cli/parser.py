"""The parser of every command: errors are raised, help is short, typos get a hint."""

import argparse
import math
import shutil
import sys
from difflib import get_close_matches
from typing import Any, NoReturn

from facescale.cli.values import convert


class Formatter(argparse.RawDescriptionHelpFormatter):
    """Help as wide as the terminal, up to 110 columns, with room for dotted names."""

    def __init__(self, prog: str) -> None:
        width = min(shutil.get_terminal_size().columns, 110)
        super().__init__(prog, max_help_position=30, width=max(60, width))


class Parser(argparse.ArgumentParser):
    """Of one command. Raises ValueError for what the user got wrong."""

    def __init__(self, prog: str, usage: str, description: str) -> None:
        super().__init__(
            prog=prog,
            usage=usage,
            description=description,
            formatter_class=Formatter,
            allow_abbrev=False,
            add_help=False,
        )
        self._positionals.title = "arguments"
        self.register("type", bool, _true_or_false)  # bool("false") is true
        self.register("type", float, _finite)

    def parse(self, words: list[str]) -> argparse.Namespace:
        """The options among `words`; `--help` is shown and ends the process."""
        if {"-h", "--help"} & set(words):
            answer(self.format_help())
        for before, word in zip(["an argument", *words], words, strict=False):
            # of a shell variable that is not set; as a path it would be the current folder
            if word == "" or (word.startswith("--") and word.endswith("=")):
                self.error(f"{word.rstrip('=') or before} is empty")
        chosen, rest = self.parse_known_args(words)
        if rest:
            known = [name for action in self._actions for name in action.option_strings]
            unknown = next((word for word in rest if word.startswith("-")), rest[0])
            self.error(f"unrecognized argument: {unknown}{_hint(unknown.split('=')[0], known)}")
        return chosen

    def error(self, message: str) -> NoReturn:
        """Raise, where argparse would print its usage and exit."""
        raise ValueError(f"{message}; see `{self.prog} --help`")


def _true_or_false(text: str) -> bool:
    value: bool = convert(text, bool, "value")
    return value


def _finite(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"must be a finite number, got {text!r}")
    return number


def check_counts(chosen: argparse.Namespace, *names: str) -> None:
    """ValueError for the first of these options that is given and below 1."""
    for name in names:
        value = getattr(chosen, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name} must be at least 1, got {value}")


def answer(text: str, status: int = 0) -> NoReturn:
    """Print a text that was asked for, and end."""
    sys.stdout.write(text)
    sys.stdout.flush()  # here, where a reader that has left is noticed
    sys.exit(status)


def choose(word: str, names: Any, what: str) -> str:
    """`word` if it is among `names`; else ValueError says which there are."""
    if word not in names:
        raise ValueError(
            f"unknown {what} {word!r}{_hint(word, names)}; there are {', '.join(names)}"
        )
    return word


def _hint(word: str, names: Any) -> str:
    close = get_close_matches(word, list(names), 1)
    return f", did you mean {close[0]}?" if close else ""
