"""results.json: written whole, and refused in one line if it was damaged or edited."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from facescale.report import record as module
from facescale.report.record import DONE, Record, Run, load
from facescale.report.settings import Settings, settings_of

NAME = "emore_r100/partial_fc/64"


def saved(path: Path) -> dict[str, Any]:
    record = Record(settings_of(Settings(memory=(1 << 30,))), {"torch": "2.13"})
    cell = record.cell(NAME, 1)
    cell.runs = [Run(DONE, rates=[4.0, 6.0], peak_gib=2.5)]
    record.systems = {"MXNet": {f"{NAME} on 8": record.cell(NAME, 8)}}
    record.save(path)
    assert load(path) == record
    values: dict[str, Any] = json.loads(path.read_text())
    return values


RATE: list[str | int] = ["cells", f"{NAME} on 1", "runs", 0, "rates", 1]
CHANGES: list[tuple[list[str | int], Any, str]] = [
    (["settings"], None, "results.settings is None, not a valid object"),
    (["settings", "runs"], "5", "results.settings.runs is '5', not a valid whole number"),
    (["settings", "runs"], 0, "runs must be at least 1, got 0"),
    (["settings", "memory", 0], 1.5, r"results.settings.memory\[0\] is 1.5"),
    (["settings", "colour"], 1, "results.settings has an unknown field 'colour'"),
    (["cells"], [], r"results.cells is \[\], not a valid object"),
    (
        ["cells", f"{NAME} on 1", "runs", 0, "rates", 1],
        "x",
        r"rates\[1\] is 'x', not a valid number",
    ),
    (RATE, float("nan"), r"rates\[1\] is nan"),
    (["cells", f"{NAME} on 1", "runs", 0, "rates"], [], "a run that is done, but has no rates"),
    (["cells", f"{NAME} on 1", "runs", 0], {"rates": []}, "has no field 'outcome'"),
    (["cells", f"{NAME} on 1", "batch"], True, "batch is True, not a valid whole number"),
    (["cells", f"{NAME} on 1", "case"], "x", "is not of a known case and its devices"),
    (["systems", "MXNet"], 3, "results.systems.MXNet is 3, not a valid object"),
]


@pytest.mark.parametrize(("place", "value", "message"), CHANGES)
def test_a_changed_value_is_named(
    place: list[str | int], value: Any, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "results.json"
    values = saved(path)
    target: Any = values
    for step in place[:-1]:
        target = target[step]
    target[place[-1]] = value
    path.write_text(json.dumps(values))
    with pytest.raises(ValueError, match=message) as caught:
        load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"[1]", b'{"format": 2}']
)
def test_another_file_is_refused_with_its_name(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"results\.json is not"):
        load(path)


def test_a_field_that_was_removed_is_named(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    values = saved(path)
    del values["fingerprint"]
    path.write_text(json.dumps(values))
    with pytest.raises(ValueError, match="has no field 'fingerprint'"):
        load(path)


@pytest.mark.skipif(shutil.which("git") is None, reason="it asks git")
def test_the_commit_is_of_the_checkout_that_has_the_package_and_not_of_one_around_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = tmp_path / "venv" / "record.py"
    installed.parent.mkdir()
    installed.touch()
    monkeypatch.setattr(module, "__file__", str(installed))
    assert module.fingerprint()["commit"] is None

    def git(*words: str) -> str:
        named = ["-c", "user.name=a", "-c", "user.email=a@b"]
        command = ["git", "-C", str(tmp_path), *named, *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    git("init")
    git("commit", "--allow-empty", "-m", "of another project")
    assert module.fingerprint()["commit"] is None
    git("add", "venv")
    git("commit", "-m", "of this one")
    assert module.fingerprint()["commit"] == git("rev-parse", "--short", "HEAD")
