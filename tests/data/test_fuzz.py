"""Every reader on changed files: what is read is read, and all else is refused in one line."""

import os
import random
import warnings
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fuzz


@pytest.mark.parametrize("reader", fuzz.READERS)
def test_a_changed_file_is_read_or_refused_in_one_line(
    reader: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("fuzz")

    @settings(deadline=None, max_examples=60)
    @given(number=st.integers(0, 2**32))
    def check(number: int) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow, which then refuses or mends
            assert fuzz.one(reader, 1, number, folder) in ("read", "refused")

    check()


def test_faults_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The counters count: a reader that does what none may do is caught at it."""

    def misbehave(folder: Path, random: random.Random) -> None:
        match random.randrange(5):
            case 0:
                raise KeyError("no error of ours")
            case 1:
                raise ValueError("two\nlines")
            case 2:
                eval("1")
            case 3:
                bytearray(4 * fuzz.MEMORY)
            case 4:
                os._exit(1)

    monkeypatch.setattr(fuzz, "warm_up", lambda folder: None)
    monkeypatch.setitem(fuzz.READERS, "bin", misbehave)
    tally, faults, _ = fuzz.fuzz("bin", 0, range(20), tmp_path)
    assert sum(tally.values()) == 20
    assert set(tally) == {"crash", "execution", "died"}
    assert len(faults) == 20
    told = "\n".join(faults)
    for sign in ("KeyError", "more than one line", "compile", "MemoryError", "exit code 1"):
        assert sign in told


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_hundred_thousand_changed_files_do_no_harm(capsys: pytest.CaptureFixture[str]) -> None:
    assert fuzz.main(["--inputs", "100000"]) == 0
    assert "0 faults" in capsys.readouterr().out
