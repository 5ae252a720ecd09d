"""Progress passes everything on and says how far it is."""

import sys
import time
from collections.abc import Iterator
from itertools import count

import pytest

from facescale.cli import progress


def test_a_log_gets_a_line_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = count(0, 20)
    monkeypatch.setattr(time, "monotonic", lambda: float(next(clock)))
    batches = [[0] * 100] * 4
    assert list(progress.show_progress(batches, 400)) == batches
    assert capsys.readouterr().err == (
        "200 of 400 images, 5/s, 0:40 left\n400 of 400 images, 5/s, 0:00 left\n"
    )


def test_other_ranks_are_silent(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(progress.EVERY_S, False, 0.0)
    assert list(progress.show_progress(["abc"], 3, shown=False)) == ["abc"]
    assert capsys.readouterr().err == ""


def test_an_error_is_told_on_a_line_of_its_own(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> Iterator[str]:
        yield "abc"
        raise ValueError("broken")

    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setitem(progress.EVERY_S, True, 0.0)
    with pytest.raises(ValueError, match="broken"):
        list(progress.show_progress(broken(), 6))
    assert capsys.readouterr().err.endswith("left\r\x1b[K")
