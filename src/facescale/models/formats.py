"""Files of weights from elsewhere: a reader for each suffix, registered by one line."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from torch import Tensor

Reader = Callable[[Path], Mapping[str, Tensor]]
"""Gives the tensors of a file under the names of this package's networks; it must execute nothing
that the file says. Raises ValueError for a damaged file."""
_Given = TypeVar("_Given", bound=Reader)

READERS: dict[str, Reader] = {}
"""By suffix, `.npz`. They go before the suffixes that `weights` knows itself."""


def register(*suffixes: str) -> Callable[[_Given], _Given]:
    """Add a reader for files with these suffixes: `@register(".npz")` above the function."""

    def add(reader: _Given) -> _Given:
        READERS.update(dict.fromkeys(suffixes, reader))
        return reader

    return add
