"""The matrix and how it is run: what is resumed, what fails and how that is told."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from facescale.cli import main
from facescale.cli.ending import exit_on_signals
from facescale.config import PRESETS
from facescale.plan.limit import OUT_OF_MEMORY, is_out_of_memory
from facescale.report import record as records
from facescale.report import runs as runner
from facescale.report.cases import MATRIX, NETWORKS, select
from facescale.report.process import _failure, run_trial_process, trial_command
from facescale.report.published import THROUGHPUT
from facescale.report.record import DONE, Cell, Run, load
from facescale.report.runs import run_matrix
from facescale.report.settings import Settings

TINY = [
    *("--backbone.name", "y1", "--data.num_classes", "50", "--train.batch_size", "2"),
    *("--train.steps", "3", "--log_every", "1", "--device", "cpu", "--optim.lr", "0.001"),
]


def test_the_matrix_is_the_reports() -> None:
    assert len(MATRIX) == 17
    assert {case.name for case in MATRIX if not case.searches_identities} == set(THROUGHPUT)
    for name, network in NETWORKS.items():
        assert f"num_classes: {network.num_classes}" in (PRESETS / f"{name}.yaml").read_text()


def test_cases_are_chosen_by_beginning_or_pattern() -> None:
    assert [case.name for case in select(["emore_r100/partial_fc/m"])] == [
        "emore_r100/partial_fc/max",
        "emore_r100/partial_fc/most_identities",
    ]
    assert len(select(["*/64"])) == 6
    assert len(select(["*"])) == len(MATRIX)
    with pytest.raises(ValueError, match="no case 'emore_r50'"):
        select(["emore_r50"])


def settings(**values: object) -> Settings:
    base = {"devices": (1, 2), "runs": 2, "iterations": 6, "pause_s": 0.0, "device": "cpu"}
    return Settings(**{**base, **values})  # type: ignore[arg-type]


class Trials:
    """In place of processes: answers each trial, and remembers the commands."""

    def __init__(self, answer: Callable[[list[str]], Run]) -> None:
        self.answer = answer
        self.commands: list[list[str]] = []

    def __call__(self, command: list[str], folder: Path, **_: object) -> Run:
        self.commands.append(command)
        return self.answer(command)


def option(command: list[str], name: str) -> str:
    return command[command.index(name) + 1]


@pytest.fixture
def trials(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[list[str]], Run]], Trials]:
    def install(answer: Callable[[list[str]], Run]) -> Trials:
        fake = Trials(answer)
        monkeypatch.setattr(runner, "run_trial_process", fake)
        return fake

    return install


def test_a_network_may_have_its_own_batch_and_iterations(
    trials: Callable[[Callable[[list[str]], Run]], Trials], tmp_path: Path
) -> None:
    fake = trials(lambda command: Run(DONE, rates=[1.0]))
    cases = select(["emore_r100/data_parallel/64", "emore_y1/data_parallel/256"])
    own = {"emore_y1": {"batch": 64, "iterations": 15}}
    chosen = settings(devices=(1,), runs=1, batch=8, own=own)
    run_matrix(cases, chosen, tmp_path)
    options = [(option(c, "--train.batch_size"), option(c, "--train.steps")) for c in fake.commands]
    assert options == [("8", "6"), ("64", "15")]
    run_matrix(cases, chosen, tmp_path)  # the record is read again
    with pytest.raises(ValueError, match="was measured with own"):
        run_matrix(cases, replace(chosen, own={}), tmp_path)
    text = (tmp_path / "results.json").read_text()
    (tmp_path / "results.json").write_text(text.replace('"emore_y1": {', '"vgg": {'))
    with pytest.raises(ValueError, match="own has 'vgg'"):
        run_matrix(cases, chosen, tmp_path)


def test_a_cell_is_the_median_of_the_means(trials: Callable[..., Trials], tmp_path: Path) -> None:
    rates = iter([[10.0, 20.0], [40.0, 50.0], [30.0, 30.0]])
    fake = trials(lambda _: Run(DONE, rates=next(rates), peak_gib=1.5))
    cases = select(["emore_y1/model_parallel/256"])
    record = run_matrix(cases, settings(devices=(1,), runs=3), tmp_path)
    cell = record.cells["emore_y1/model_parallel/256 on 1"]
    assert cell.rate == 30.0  # of 15, 45, 30
    assert cell.batch == 256
    command = fake.commands[0]
    assert option(command, "--train.batch_size") == "256"
    assert option(command, "--data.path") == "synthetic"
    assert "--head.shards" not in command
    assert cell.command.endswith(" ".join(command[-8:]))


def test_a_matrix_broken_off_goes_on_where_it_stopped(
    trials: Callable[..., Trials], tmp_path: Path
) -> None:
    cases = select(["emore_y1/data_parallel/256", "emore_y1/model_parallel/256"])
    calls = iter(range(5))

    def stop_after_five(_: list[str]) -> Run:
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return Run(DONE, rates=[1.0])

    trials(stop_after_five)
    with pytest.raises(KeyboardInterrupt):
        run_matrix(cases, settings(), tmp_path)
    fake = trials(lambda _: Run(DONE, rates=[2.0]))
    record = run_matrix(cases, settings(), tmp_path)
    assert len(fake.commands) == 2 * 2 * 2 - 5
    assert all(len(cell.runs) == 2 for cell in record.cells.values())
    assert load(tmp_path / "results.json").cells == record.cells
    with pytest.raises(ValueError, match="was measured with iterations 6, not 9"):
        run_matrix(cases, settings(iterations=9), tmp_path)


def test_a_failed_case_says_why_and_the_rest_goes_on(
    trials: Callable[..., Trials], tmp_path: Path
) -> None:
    fake = trials(
        lambda command: (
            Run(OUT_OF_MEMORY, reason="RuntimeError: no memory")
            if "--nproc_per_node=1" in command
            else Run(DONE, rates=[3.0])
        )
    )
    record = run_matrix(select(["glint360k_r100/data_parallel/64"]), settings(), tmp_path)
    one, two = record.cells.values()
    assert one.failure == "out of memory: RuntimeError: no memory"
    assert one.rate is None
    assert two.rate == 3.0
    assert len(fake.commands) == 3  # the failed one is not tried twice
    assert fake.commands[0][-2:] == ["--head.shards", "1"]


def test_the_largest_batch_is_searched_and_then_measured(
    trials: Callable[..., Trials], tmp_path: Path
) -> None:
    def fits_100(command: list[str]) -> Run:
        batch = int(option(command, "--train.batch_size"))
        return Run(DONE, rates=[5.0], peak_gib=0.5) if batch <= 100 else Run(OUT_OF_MEMORY)

    fake = trials(fits_100)
    chosen = settings(devices=(1,), memory=(1 << 30,), search_precision=0.0)
    record = run_matrix(select(["emore_r100/partial_fc/max"]), chosen, tmp_path)
    cell = record.cells["emore_r100/partial_fc/max on 1"]
    assert cell.found == cell.batch == 100
    assert option(fake.commands[-1], "--train.steps") == "6"
    assert option(fake.commands[0], "--memory") == str(1 << 30)
    numbers = [run.number for run in cell.tries]
    assert len(numbers) == len(set(numbers)) == len(fake.commands) - 2


def test_a_batch_that_was_found_is_kept_if_its_runs_are_broken_off(
    trials: Callable[..., Trials], tmp_path: Path
) -> None:
    def one_fits(command: list[str]) -> Run:
        if option(command, "--train.steps") == "6":
            raise KeyboardInterrupt
        small = int(option(command, "--train.batch_size")) <= 64
        return Run(DONE, rates=[5.0]) if small else Run(OUT_OF_MEMORY)

    trials(one_fits)
    chosen = settings(devices=(1,), memory=(1 << 30,), search_precision=0.5)
    with pytest.raises(KeyboardInterrupt):
        run_matrix(select(["emore_r100/partial_fc/max"]), chosen, tmp_path)
    cell = load(tmp_path / "results.json").cells["emore_r100/partial_fc/max on 1"]
    assert cell.batch == cell.found == 64


def test_most_identities_are_searched_for_each_limit_of_memory(
    trials: Callable[..., Trials], tmp_path: Path
) -> None:
    def fits(command: list[str]) -> Run:
        needed = int(option(command, "--data.num_classes")) * 4096
        peak = needed / 2**30 + 0.3  # libraries, which the kernel's limit does not count
        return Run(DONE, rates=[1.0], peak_gib=peak) if needed <= 2 << 30 else Run(OUT_OF_MEMORY)

    trials(fits)
    limits = (1 << 30, 2 << 30)
    chosen = settings(devices=(1,), memory=limits, precision="bf16", search_precision=0.01)
    record = run_matrix(select(["emore_r100/partial_fc/most"]), chosen, tmp_path)
    for memory, cell in zip(limits, record.cells.values(), strict=True):
        assert cell.found == pytest.approx((memory - 0.3 * 2**30) / 4096, rel=0.02)


def test_a_limit_of_memory_may_be_added(trials: Callable[..., Trials], tmp_path: Path) -> None:
    fake = trials(lambda command: Run(OUT_OF_MEMORY) if "200000" in command else Run(DONE))
    cases = select(["emore_r100/partial_fc/most"])
    asked = []
    for limits in ((1 << 30,), (1 << 30, 2 << 30), (1 << 30,)):
        chosen = settings(devices=(1,), memory=limits, search_precision=1.0)
        record = run_matrix(cases, chosen, tmp_path)
        asked.append({option(command, "--memory") for command in fake.commands})
        fake.commands.clear()
    assert asked == [{str(1 << 30)}, {str(2 << 30)}, set()]
    assert [cell.memory for cell in record.cells.values()] == record.settings["memory"]
    with pytest.raises(ValueError, match=r"with memory \[1073741824, 2147483648\], not"):
        run_matrix(cases, settings(devices=(1,), memory=(2 << 30,), search_precision=1.0), tmp_path)


def test_a_search_stops_where_a_try_fails_for_another_reason(
    trials: Callable[..., Trials], tmp_path: Path
) -> None:
    trials(lambda _: Run("killed by signal 9"))
    chosen = settings(devices=(1,), memory=(1 << 30,))
    record = run_matrix(select(["emore_r100/partial_fc/m"]), chosen, tmp_path)
    for cell in record.cells.values():
        assert "killed by signal 9" in cell.failure
        assert cell.tries == []
    without = run_matrix(select(["emore_y1/data_parallel/max"]), settings(), tmp_path / "other")
    assert all("a search needs --memory" in cell.failure for cell in without.cells.values())


def test_failed_cells_are_measured_again_on_request(
    trials: Callable[..., Trials], tmp_path: Path
) -> None:
    cases = [
        *select(["emore_y1/model_parallel/256"]),
        *select(["emore_r100/partial_fc/most_identities"]),
    ]
    limited = settings(devices=(1,), runs=1, memory=(2**33,))

    def number(command: list[str]) -> int:
        return int(option(command, "--data.num_classes")) if "--data.num_classes" in command else 0

    trials(lambda c: Run(DONE) if 0 < number(c) < 400_000 else Run("error", reason="disk full"))
    record = run_matrix(cases, limited, tmp_path)
    assert all("disk full" in cell.failure for cell in record.cells.values())
    fits = trials(lambda c: Run(DONE, rates=[1.0]) if number(c) < 500_000 else Run(OUT_OF_MEMORY))
    run_matrix(cases, limited, tmp_path)
    assert not fits.commands
    record = run_matrix(cases, limited, tmp_path, retry=True)
    throughput, identities = record.cells.values()
    assert throughput.rate == 1.0
    assert identities.found is not None
    assert 400_000 <= identities.found < 500_000
    assert 100_000 not in [number(command) for command in fits.commands]
    measured = len(fits.commands)
    run_matrix(cases, limited, tmp_path, retry=True)
    assert len(fits.commands) == measured


def test_a_report_with_an_empty_case_is_refused() -> None:
    with pytest.raises(ValueError, match="no case ''; the cases are"):
        select(["emore_y1", ""])  # of --cases emore_y1,


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"pause_s": -1.0}, "pause_s must be at least 0, got -1"),
        ({"timeout_s": 0.0}, "timeout_s must be greater than 0, got 0"),
        ({"timeout_s": float("nan")}, "timeout_s must be greater than 0, got nan"),
        ({"search_precision": -0.1}, "search_precision must be at least 0"),
        ({"memory": (0,)}, "memory must be at least 1, got 0"),
        ({"devices": (1, 0)}, "devices must be at least 1, got 0"),
        ({"devices": ()}, "devices must have at least one number"),
    ],
)
def test_settings_that_no_trial_could_have_are_refused(
    values: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        settings(**values)


def test_a_data_set_must_have_the_identities_of_its_table(
    trials: Callable[..., Trials], tmp_path: Path
) -> None:
    fake = trials(lambda _: Run(DONE, rates=[1.0]))
    cases = select(["emore_r100/partial_fc/64", "glint360k_r100/partial_fc/64"])
    chosen = settings(devices=(1,), runs=1, data={"emore": "/data/faces"})
    run_matrix(cases, chosen, tmp_path)
    real, synthetic = fake.commands
    assert option(real, "--data.path") == "/data/faces"
    assert option(real, "--data.num_classes") == "85742"  # which the trial checks
    assert option(synthetic, "--data.path") == "synthetic"


HERE = {"processor": "A", "cores": 2, "gpu": None, "torch": "2.12.0", "commit": "abc"}


def test_runs_of_two_machines_are_not_mixed_and_other_software_is_named(
    trials: Callable[..., Trials], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = select(["emore_y1/data_parallel/256", "emore_y1/model_parallel/256"])

    def on(devices: tuple[int, ...], **changes: object) -> dict[str, object]:
        monkeypatch.setattr(records, "fingerprint", lambda: {**HERE, **changes})
        return run_matrix(cases, settings(devices=devices), tmp_path).fingerprint

    fake = trials(lambda _: Run(DONE, rates=[1.0]))
    assert on((1,)) == HERE
    begun = len(fake.commands)
    with pytest.raises(ValueError, match="were measured with processor A, and here it is B"):
        on((1, 2), processor="B")
    assert on((1,), processor="B") == HERE  # nothing is missing, so nothing is mixed
    assert len(fake.commands) == begun
    assert on((1, 2), torch="2.13.0")["torch"] == "2.12.0, then 2.13.0"
    assert on((1, 2, 3), torch="2.13.0")["torch"] == "2.12.0, then 2.13.0"
    assert load(tmp_path / "results.json").fingerprint["commit"] == "abc"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"), True),
        (RuntimeError("std::bad_alloc"), True),
        (RuntimeError("could not create a primitive"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (FloatingPointError("the loss is not finite"), False),
    ],
)
def test_want_of_memory_is_told_from_other_errors(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) is expected


def run_real(folder: Path, devices: int, *more: str, memory: int | None = None) -> Run:
    command = trial_command("synthetic", devices, folder, [*TINY, *more], memory)
    return run_trial_process(command, folder, threads=1, counted=2, timeout_s=100)


@pytest.mark.slow
def test_two_real_ranks_leave_rates_and_nothing_large(tmp_path: Path) -> None:
    run = run_real(tmp_path, 2)
    assert run.outcome == DONE, (tmp_path / "output.log").read_text()
    assert len(run.rates) == 2
    assert run.peak_gib is not None
    assert run.peak_gib > 0.2
    assert {path.name for path in tmp_path.iterdir()} == {
        "metrics.jsonl",
        "training.log",
        "output.log",
    }


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA is Linux's")
def test_the_kernel_refuses_memory_beyond_the_limit(tmp_path: Path) -> None:
    run = run_real(tmp_path, 1, "--train.batch_size", "64", memory=700 << 20)
    assert run.outcome == OUT_OF_MEMORY
    assert "memory" in run.reason


def processes_of(folder: Path) -> list[int]:
    """Numbers of the processes in whose command `folder` is, trials of its report."""
    there = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has ended meanwhile
            if f"{folder}/runs" in path.read_text():
                there.append(int(path.parent.name))
    return there


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
@pytest.mark.parametrize(
    "number", [pytest.param(signal.SIGTERM, marks=pytest.mark.slow), signal.SIGHUP]
)
def test_a_report_that_is_told_to_end_takes_its_trial_along(
    number: signal.Signals, tmp_path: Path
) -> None:
    options = ["--devices", "1", "--cases", "emore_y1/model_parallel/256", "--batch", "2"]
    command = [sys.executable, "-m", "facescale", "bench", "report", "--output", str(tmp_path)]
    report = subprocess.Popen([*command, *options, "--device", "cpu"])
    deadline = time.monotonic() + 60
    while not processes_of(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert processes_of(tmp_path)
    report.send_signal(number)
    assert report.wait(30) == 128 + number
    assert processes_of(tmp_path) == []


def test_a_signal_while_a_trial_starts_ends_it_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = []

    class Interrupted(subprocess.Popen[bytes]):
        def __init__(self, command: Any, **options: Any) -> None:
            super().__init__([sys.executable, "-c", "import time; time.sleep(60)"], **options)
            started.append(self)
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(subprocess, "Popen", Interrupted)
    with pytest.raises(SystemExit), exit_on_signals():
        run_trial_process(["torchrun"], tmp_path, threads=1, counted=1, timeout_s=60)
    assert started[0].returncode == -signal.SIGTERM


WRONG = ["--backbone.name", "r99"]


def test_a_wrong_option_is_an_error_with_its_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["bench", "case", "synthetic", "--output", str(tmp_path), *TINY, *WRONG])
    (tmp_path / "output.log").write_text(capsys.readouterr().err)
    run = _failure(tmp_path)
    assert run.outcome == "error"
    assert "unknown backbone 'r99'" in run.reason


def test_a_killed_rank_is_told_by_its_signal(tmp_path: Path) -> None:
    (tmp_path / "output.log").write_text("  exitcode  : -9 (pid: 77)\n")
    assert _failure(tmp_path).outcome == "killed by signal 9"


def test_a_note_that_a_rank_did_not_finish_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "failure-0.json").write_text('{"kind": "er')  # torchrun ended it meanwhile
    (tmp_path / "failure-1.json").write_text('{"kind": "error", "reason": "the reason"}')
    assert _failure(tmp_path).reason == "the reason"
    (tmp_path / "failure-1.json").unlink()
    (tmp_path / "output.log").write_text("facescale: a line\n")
    assert _failure(tmp_path).reason == "facescale: a line"


def test_a_rank_that_lost_the_others_does_not_hide_why(tmp_path: Path) -> None:
    note = {"kind": "error", "reason": "ConnectionError: the other ranks are gone or out of reach"}
    (tmp_path / "failure-0.json").write_text(json.dumps(note))
    for said, outcome in (
        ("terminate called after throwing an instance of 'std::bad_alloc'\n", OUT_OF_MEMORY),
        ("  exitcode  : 2 (pid: 76)\n  exitcode  : -9 (pid: 77)\n", "killed by signal 9"),
        ("", "error"),
    ):
        (tmp_path / "output.log").write_text(said)
        assert _failure(tmp_path).outcome == outcome
    assert _failure(tmp_path).reason == note["reason"]


def test_a_kernel_without_room_is_out_of_memory(tmp_path: Path) -> None:
    said = "terminate called after throwing an instance of 'std::bad_alloc'\n exitcode : -6\n"
    (tmp_path / "output.log").write_text(said)
    assert _failure(tmp_path).outcome == "out of memory"


def test_a_record_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text(json.dumps({"format": 99}))
    with pytest.raises(ValueError, match="not a benchmark's results"):
        load(path)
    assert Cell("a", 1).rate is None


@pytest.mark.parametrize(
    ("option", "text", "message"),
    [
        ("--batch", "8,r50=4", "--batch names 'r50'; the networks are emore_r100"),
        ("--batch", "many", "--batch is 'many'; write 8, or 8,emore_y1=64"),
        ("--iterations", "50,emore_y1=0", "--iterations must be at least 1, got 0"),
        ("--iterations", "50,emore_y1=2", "iterations must be at least 3, got 2"),
        ("--batch", "8,16", "--batch is '8,16', two numbers for the same"),
        ("--batch", "emore_y1=8,emore_y1=16", "two numbers for the same"),
        ("--devices", "1,0", "devices must be at least 1, got 0"),
        ("--devices", "0", "devices must be at least 1, got 0"),
        ("--threads", "0", "threads must be at least 1, got 0"),
        ("--precision", "fp8", "--precision is 'fp8'; choose one of float32"),
        ("--logs", "nonsense", "write CASE@DEVICES=FILES"),
    ],
)
def test_a_mistake_in_an_option_is_named_before_a_trial_runs(
    option: str,
    text: str,
    message: str,
    trials: Callable[..., Trials],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    fake, fast = trials(lambda _: Run(DONE, rates=[1.0])), ["--pause_s", "0", "--device", "cpu"]
    with pytest.raises(SystemExit):
        main(["bench", "report", option, text, *fast, "--output", str(tmp_path)])
    assert message in capsys.readouterr().err
    assert fake.commands == []


def test_two_reports_do_not_write_to_one_folder(
    trials: Callable[..., Trials], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    held = {"host": socket.gethostname(), "pid": os.getppid(), "start": None}
    (tmp_path / ".lock").write_text(json.dumps(held))
    options = ["--devices", "1", "--cases", "emore_y1", "--device", "cpu", "--pause_s", "0"]
    fake = trials(lambda _: Run(DONE, rates=[1.0]))
    with pytest.raises(SystemExit):
        main(["bench", "report", *options, "--output", str(tmp_path)])
    assert f"is in use by process {os.getppid()}" in capsys.readouterr().err
    assert fake.commands == []


def test_a_signal_that_is_ignored_stays_so() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup leaves it
    try:
        with exit_on_signals():
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
            with pytest.raises(SystemExit) as end:
                signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert end.value.code == 128 + signal.SIGTERM


def test_a_reason_is_shown_as_it_is(
    trials: Callable[..., Trials], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    reason = "RuntimeError: [enforce fail at alloc_cpu.cpp:117] of [/data/faces]"
    trials(lambda _: Run(OUT_OF_MEMORY, reason=reason))
    options = ["--devices", "1", "--cases", "emore_y1/data_parallel/256", "--device", "cpu"]
    main(["bench", "report", *options, "--output", str(tmp_path)])
    assert f"on 1: out of memory, {reason}\n" in capsys.readouterr().out
