"""Where the shared data lies: photographs and golden answers that never enter the repository."""

import os
from pathlib import Path

import pytest

_REPOSITORY = Path(__file__).resolve().parents[1]


def shared_data(name: str) -> Path:
    """Path of `name` in the shared data; skips the running test where it is absent.

    The folder is `$FACESCALE_DATA`, or `../shared/data` beside the repository.
    """
    root = Path(os.environ.get("FACESCALE_DATA") or _REPOSITORY.parent / "shared" / "data")
    path = root / name
    if not path.exists():
        pytest.skip(f"no shared data at {path}; set FACESCALE_DATA to the folder that has {name}")
    return path
