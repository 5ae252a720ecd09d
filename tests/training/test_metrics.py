"""The arithmetic of rates, and a file that survives a crash."""

import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch

from facescale.training.batches import decoding_threads
from facescale.training.metrics import Window, memory_row, read_metrics, speed_line


def test_rate_is_samples_over_the_seconds_of_the_window() -> None:
    clock = iter([100.0, 104.0, 106.0])
    window = Window(clock=lambda: next(clock))
    window.add(30)
    window.add(10)
    assert window.close() == 10.0
    window.add(6)
    assert window.close() == 3.0


def test_time_that_is_not_training_is_left_out() -> None:
    clock = iter([0.0, 10.0])
    window = Window(clock=lambda: next(clock))
    window.add(20)
    window.skip(6.0)
    assert window.close() == 5.0


def test_speed_line_is_what_users_of_arcface_torch_parse() -> None:
    assert speed_line(4500.123, 25.1, 0.1, 1, 20, 5.4) == (
        "Speed 4500.12 samples/sec   Loss 25.1000   LearningRate 0.100000   Epoch: 1   "
        "Global Step: 20   Required: 5 hours"
    )
    assert "Fp16 Grad Scale: 65536   Required" in speed_line(1, 1, 1, 1, 1, 1, 65536.0)


def test_a_line_cut_off_by_a_crash_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 3.0}\n{"step": 2, "loss": 2.0}\n{"step": 3, "lo')
    assert [row["step"] for row in read_metrics(path)] == [1, 2]


@pytest.mark.parametrize("line", ["hello", "[1]", "3", '{"loss": 1}', '{"step": "x"}', "\xff"])
def test_another_line_that_is_no_record_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(f'{{"step": 1}}\n{line}\n{{"step": 2}}\n'.encode("latin-1"))
    with pytest.raises(ValueError, match=r"metrics.jsonl, line 2 is no record"):
        read_metrics(path)


def test_no_file_is_no_records(tmp_path: Path) -> None:
    assert read_metrics(tmp_path / "none.jsonl") == []


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"not JSON", "line 2 is no record: Expecting value"),
        (b"\xff", "line 2 is no record"),
        (b"[1]", "line 2 is no record: it is not an object with a whole number 'step'"),
        (b'{"step": "2"}', "with a whole number 'step'"),
        (b'{"step": 2, "loss": "low"}', "line 2 is no record: loss is 'low', not a number"),
    ],
)
def test_a_line_that_is_no_record_is_named(line: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + line + b'\n{"step": 3}\n')
    with pytest.raises(ValueError, match=message) as caught:
        read_metrics(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("samples", [0, 5])
def test_a_window_of_no_time_does_not_divide_by_zero(samples: int) -> None:
    window = Window(clock=lambda: 1.0, samples=samples)
    assert window.close() >= 0.0


def test_on_cuda_the_records_say_what_is_reserved_too() -> None:
    assert memory_row(torch.device("cpu")).keys() == {"peak_gib"}
    with (
        mock.patch.object(torch.cuda, "max_memory_allocated", return_value=3 << 30),
        mock.patch.object(torch.cuda, "max_memory_reserved", return_value=4 << 30),
    ):
        row = memory_row(torch.device("cuda", 0))
    assert row == {"peak_gib": 3.0, "reserved_gib": 4.0}


def test_a_card_has_more_decoding_threads_by_its_share_of_the_cores(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    for ranks, threads in ((1, 8), (4, 3), (16, 2)):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
        assert decoding_threads("cuda") == threads
        assert decoding_threads("cpu") == 2


LARGE_PARENT = """
import subprocess, sys
ballast = b"1" * 1_500_000_000
print(subprocess.run([sys.executable, "-c", sys.argv[1]], capture_output=True, text=True).stdout)
"""
ASKED = """
import torch
from facescale.training.metrics import peak_memory
print(peak_memory(torch.device("cpu")))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems give no VmHWM")
def test_the_peak_of_a_process_is_not_that_of_its_parent() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LARGE_PARENT, ASKED], capture_output=True, text=True, check=True
    )
    assert 50e6 < int(done.stdout) < 1.4e9
