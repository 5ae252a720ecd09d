"""What commands print: tables and lines that are whole in a pipe and in a narrow terminal too."""

import json
import os
from pathlib import Path
from typing import Any

from rich import markup
from rich.console import Console
from rich.table import Table
from rich.text import Text

from facescale.files import printable

__all__ = ["PICTURES", "escape", "file_to_write", "say", "show", "show_json", "table"]


def escape(text: str) -> str:
    """A name or a path as rich's markup shows it, with control characters as escapes."""
    return markup.escape(printable(text))


def say(text: str) -> None:
    """Print a line, with rich's markup; names and paths in it went through `escape`."""
    _console().print(text, soft_wrap=True)


class _Console(Console):
    """A console that leaves it to `main` to end where the reader of a pipe has left."""

    def on_broken_pipe(self) -> None:
        """Pass the error on: rich would exit with 1, by which `data check` says "bad records"."""
        raise


def _console() -> Console:
    return _Console(highlight=False, emoji=False)  # a path may have :100: in it


def table(*titles: str, left: int = 1) -> Table:
    """A table without rules; the first `left` columns are texts, the others figures."""
    made = Table(box=None, padding=(0, 2), header_style="bold")
    for number, title in enumerate(titles):
        made.add_column(title, justify="left" if number < left else "right", no_wrap=True)
    return made


def show(shown: Table) -> None:
    """Print a table at the width that it needs; rich would cut it to the terminal's, or to 80."""
    console = _console()
    wide = console.options.update(width=10_000)
    width = console.measure(shown, options=wide).maximum
    for line in console.render_lines(shown, wide.update(width=width)):
        text = Text.assemble(*((part.text, part.style or "") for part in line))
        text.rstrip()
        console.print(text, soft_wrap=True)


def show_json(value: Any) -> None:
    """Print plain values for programs."""
    print(json.dumps(value, indent=1))


PICTURES = (".png", ".pdf", ".svg")


def file_to_write(name: str, *suffixes: str) -> Path:
    """A file that a command will write at its end; its folder is made now.

    Args:
        name: Where.
        suffixes: One of these is the end of the name; any end will do where none is given.

    Raises:
        ValueError: The name ends otherwise.
        OSError: It could not be written, which is better known before the work.
    """
    path = Path(name)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; give the name of a file")
    if suffixes and path.suffix not in suffixes:
        raise ValueError(f"{path}: give a name that ends in {' or '.join(suffixes)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise PermissionError(
            f"{path} could not be written: permission denied; choose another folder"
        )
    return path
