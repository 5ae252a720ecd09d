"""The phases of `facescale bench device`, on a CPU and small: rows, failures, time, the page."""

import io
import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from facescale.cli import main
from facescale.report.device.results import load
from facescale.report.record import fingerprint
from facescale.timing.clock import Timed, time_calls
from facescale.timing.device import PHASES, Phase, capped, runner, trace
from facescale.timing.device.__main__ import main as run_phase
from facescale.timing.device.bench import Bench, Notes
from facescale.timing.device.ceilings import run as run_ceilings
from facescale.timing.device.head_times import run as run_head
from facescale.timing.device.head_times import ways
from facescale.timing.device.runner import run_phases
from facescale.timing.device.sizes import SIZES
from facescale.timing.device.step_times import FEW, OURS, PEER, Setting, settings
from mistakes import refused
from triton_process import interpreted, needs_triton

CPU = torch.device("cpu")


def bench(tmp_path: Path, seconds: float = 60.0, argument: str = "") -> Bench:
    return Bench(CPU, SIZES["tiny"], Notes(tmp_path / "notes.json", CPU, seconds), argument)


def fails(bench: Bench) -> None:
    bench.notes.add({"what": "before"})
    raise RuntimeError("broken")


def dies(bench: Bench) -> None:
    bench.notes.add({"what": "before"})
    os.kill(os.getpid(), 9)


def hangs(bench: Bench) -> None:
    bench.notes.add({"what": "before"})
    time.sleep(60)


def runs_out(bench: Bench) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")


def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Phase]:
    """A phase of each kind that fails, as modules that their processes can import."""
    names = ("fails", "dies", "hangs", "runs_out")
    for name in names:
        (tmp_path / f"phase_{name}.py").write_text(f"from test_device import {name} as run\n")
    here, tests = Path(__file__).parents[:2]
    found = [str(tmp_path), str(here), str(tests), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(found))
    return [Phase(name, f"phase_{name}", 1.0) for name in names] + [Phase("none", "nosuch", 1.0)]


@pytest.mark.slow
def test_a_phase_that_fails_does_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "GRACE_S", 4.0)
    bad = broken(tmp_path, monkeypatch)
    (ceilings,) = (phase for phase in PHASES if phase.name == "ceilings")
    path = run_phases(
        tmp_path, device="cpu", sizes="tiny", budget_s=60.0, fingerprint={},
        phases=[*bad, replace(ceilings, share=1.0)],
    )  # fmt: skip
    phases = load(path).phases
    ends = {name: (phase.outcome, phase.reason, len(phase.rows)) for name, phase in phases.items()}
    assert ends["fails"] == ("error", "RuntimeError: broken", 1)
    assert ends["dies"][::2] == ("killed by signal 9", 1)
    assert ends["hangs"][::2] == ("no end", 1)
    assert ends["runs_out"][0] == "out of memory"
    assert ends["none"][0] == "error"
    assert "No module named 'nosuch'" in ends["none"][1]
    assert ends["ceilings"][0] == "done"
    assert ends["ceilings"][2] > 3


def test_the_command_measures_and_writes_a_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from facescale.timing import device

    bad = Phase("bad", "nosuch", 4.0)
    monkeypatch.setattr(device, "PHASES", (bad, PHASES[0], PHASES[4]))
    main(["bench", "device", "--sizes", "tiny", "--budget", "12", "--output", str(tmp_path)])
    said = capsys.readouterr().out
    assert "no CUDA device: the CPU is measured" in said or torch.cuda.is_available()
    values = json.loads((tmp_path / "device.json").read_text())
    assert values["phases"]["bad"]["outcome"] == "error"
    assert values["phases"]["ceilings"]["outcome"] == "done"
    assert values["phases"]["memory_all"]["outcome"] == "not run"
    assert {"what", "rate", "unit", "ms", "spread"} <= values["phases"]["ceilings"]["rows"][
        0
    ].keys()
    page = (tmp_path / "device.md").read_text()
    assert "### Ceilings" in page
    assert "No module named 'nosuch'" in page
    main(["bench", "page", str(tmp_path / "device.json"), "--output", str(tmp_path / "again")])
    assert (tmp_path / "again" / "device.html").is_file()


def test_phases_measured_before_are_kept_if_nothing_else_has_changed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from facescale.timing import device

    path, here = tmp_path / "device.json", fingerprint()
    monkeypatch.setattr(device, "PHASES", (Phase("bad", "nosuch", 1.0), PHASES[4]))
    old = {"outcome": "done", "reason": "", "seconds": 1.0, "rows": [], "left_out": []}
    settings = {"device": "cpu", "sizes": "tiny", "budget_s": 1.0}
    values = {"format": "device 1", "settings": settings, "fingerprint": here}
    path.write_text(json.dumps(values | {"phases": {"ceilings": old, "memory_all": old}}))
    command = ["bench", "device", "--device", "cpu", "--sizes", "tiny", "--output", str(tmp_path)]
    main([*command, "--phases", "memory_all"])
    phases = json.loads(path.read_text())["phases"]
    assert phases["ceilings"] == old
    assert phases["memory_all"]["outcome"] == "not run"

    before = path.read_text()
    for changed, said in (
        ({"fingerprint": here | {"commit": "before"}}, "with commit before, and now it is"),
        (
            {"settings": settings | {"sizes": "cpu"}},
            "with --sizes cpu, and now it is tiny",
        ),
    ):
        path.write_text(json.dumps(json.loads(before) | changed))
        assert said in refused(capsys, *command, "--phases", "memory_all")
    main([*command, "--budget", "0.5"])  # all phases: nothing is kept
    assert "ceilings" not in json.loads(path.read_text())["phases"]


def test_unknown_phases_and_budgets_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for words, said in (
        ("--phases ceilings,fly", "--phases 'fly'; there are ceilings, kernels"),
        ("--budget 0", "--budget is 0; give seconds"),
    ):
        with pytest.raises(SystemExit):
            main(["bench", "device", "--device", "cpu", *words.split()])
        assert said in capsys.readouterr().err


def test_the_head_is_timed_in_every_way_at_every_size(tmp_path: Path) -> None:
    made = bench(tmp_path)
    run_head(made)
    rows = made.notes.rows
    assert not [row for row in rows if "failure" in row]
    assert {(row["identities"], row["walk"]) for row in rows} == {
        (size, way.walk) for size, _ in SIZES["tiny"].heads for way in ways(on_cuda=False)
    }
    assert rows[0]["bytes"] == 5 * 4 * 512 * 50
    assert json.loads((tmp_path / "notes.json").read_text())["rows"] == rows


def test_what_has_no_time_is_left_out_and_a_failure_is_a_row(tmp_path: Path) -> None:
    notes = bench(tmp_path, seconds=0.0).notes
    assert notes.measure({"what": "a"}, lambda: {"ms": 1.0}) == {"what": "a", "ms": 1.0}
    assert notes.measure({"what": "b"}, lambda: {"ms": 1.0}) is None
    assert notes.left_out == [{"what": "b"}]

    def no_room() -> dict[str, Any]:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried")

    notes = bench(tmp_path).notes
    assert notes.measure({"what": "c"}, no_room) is None
    assert notes.rows == [
        {"what": "c", "failure": "out of memory: OutOfMemoryError: CUDA out of memory. Tried"}
    ]


@pytest.mark.slow
def test_ceilings_are_measured(tmp_path: Path) -> None:
    made = bench(tmp_path)
    run_ceilings(made)
    assert made.notes.rows
    assert not [row for row in made.notes.rows if "failure" in row]


def test_the_settings_of_a_card_begin_with_the_targets_and_the_reports_rows() -> None:
    chosen = settings(SIZES["gpu"], on_cuda=True)
    assert len(set(chosen)) == len(chosen)
    first = Setting("r100", 256, "bf16", 360_232, "glint360k", 0.1, way="graphs")
    assert chosen[:3] == [first, replace(first, who=PEER, way="eager"), replace(
        first, identities=FEW, dataset="", rate=1.0
    )]  # fmt: skip
    for dataset, identities in (("emore", 85_742), ("glint360k", 360_232)):
        for rate in (0.1, 1.0):
            assert (
                Setting("r100", 64, "float32", identities, dataset, rate, way="graphs")
                in chosen[:20]
            )
            for precision in ("bf16", "tf32", "fp16", "float32"):
                for batch in (64, 128, 256):
                    setting = Setting("r100", batch, precision, identities, dataset, rate)
                    assert replace(setting, way="graphs") in chosen
    assert Setting("y1", 256, "float32", 85_742, "emore", way="graphs") in chosen[:20]
    assert {(s.network, s.way) for s in chosen if s.who == OURS} >= {
        ("mbf", "graphs"), ("y1", "graphs"), ("mbf", "eager"), ("y1", "eager"),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("limit", "tries"),
    [
        (1000, {950: True, 1050: False}),
        (1200, {950: True, 1050: True, 1207: False}),
        (700, {950: False, 807: False, 685: True}),
    ],
)
def test_a_planned_limit_is_confirmed_or_followed(limit: int, tries: dict[int, bool]) -> None:
    assert capped.bracket(lambda number: number <= limit, 1000, lambda: True) == tries
    if limit == 1200:
        assert len(capped.bracket(lambda number: number <= limit, 1000, lambda: False)) == 2


def event(name: str, category: str, start: float, length: float, thread: int = 1) -> dict[str, Any]:
    return {"ph": "X", "name": name, "cat": category, "ts": start, "dur": length, "tid": thread}


def test_a_trace_of_a_card_is_summed_up() -> None:
    events = [
        event("gemm", "kernel", 1000, 400),
        event("norm", "kernel", 1300, 200),  # 100 of it beside the other
        event("gemm", "kernel", 1700, 300),
        event("Memcpy HtoD", "gpu_memcpy", 2000, 100),
        *(event("cudaLaunchKernel", "cuda_runtime", 900 + n, 1) for n in range(2)),
        event("cuLaunchKernelEx", "cuda_driver", 950, 1),
        event("cudaStreamSynchronize", "cuda_runtime", 2200, 50),
        event("cudaEventSynchronize", "cuda_runtime", 2300, 5),
        event("cudaDeviceSynchronize", "cuda_runtime", 2400, 5),
        event("aten::mm", "cpu_op", 800, 100),
        {"ph": "M", "name": "process_name"},
    ]
    total, top = trace.summary(events, steps=2)
    assert total["busy_ms"] == pytest.approx(0.45)
    assert total["idle_ms"] == pytest.approx(0.1)
    assert (total["launches"], total["host_reads"], total["late_reads"]) == (1.5, 0.5, 0.5)
    assert [(row["name"], row["count"]) for row in top] == [
        ("gemm", 1.0), ("norm", 0.5), ("Memcpy HtoD", 0.5),
    ]  # fmt: skip
    assert top[0]["ms"] == pytest.approx(0.35)
    assert top[0]["share"] == pytest.approx(0.7)


def test_operators_of_a_cpu_are_counted_without_those_inside_of_them() -> None:
    events = [
        event("linear", "cpu_op", 0, 100),
        event("mm", "cpu_op", 10, 60),
        event("copy", "cpu_op", 20, 10),
        event("linear", "cpu_op", 0, 50, thread=2),
    ]
    _, top = trace.summary(events, steps=1)
    assert {row["name"]: row["ms"] for row in top} == pytest.approx(
        {"linear": 0.09, "mm": 0.05, "copy": 0.01}
    )
    assert Timed([1.0] * 5).spread == 0.0


@pytest.mark.slow
def test_every_phase_runs_on_a_cpu(tmp_path: Path) -> None:
    options = ["--device", "cpu", "--sizes", "tiny", "--budget", "150"]
    main(["bench", "device", *options, "--output", str(tmp_path)])
    results = load(tmp_path / "device.json")
    ends = {name: phase.outcome for name, phase in results.phases.items()}
    assert ends.pop("memory_all") == "not run"
    assert set(ends.values()) == {"done"}, ends
    for name in set(ends) - {"memory_2"}:
        assert list(results.rows(name)), name
    assert all(row["passed"] for row in results.rows("kernels"))
    assert {row.get("ranks", 1) for row in results.rows("ranks")} == {1, 8}


class OnCard(Bench):
    """Takes the branches of a card, on CPU tensors: where Triton interprets kernels."""

    on_cuda = True


def card_rows(folder: str) -> list[dict[str, Any]]:
    """Rows of the checks and of the head's ways, as a card takes them."""
    from facescale.timing.device import correctness

    made = bench(Path(folder), seconds=300.0)
    card = OnCard(made.device, made.sizes, made.notes)
    correctness.IMAGES = {"float32": 1e-5}
    correctness.SHAPES = (((2, 24, 5, 7), 24), ((3, 24, 3, 3), 1))
    correctness.run(card)
    run_head(card)
    return card.notes.rows


@needs_triton
@pytest.mark.slow
def test_the_checks_and_ways_of_a_card_run_in_the_interpreter(tmp_path: Path) -> None:
    rows = interpreted(card_rows, str(tmp_path))
    # CPU tensors: torch has no card to ask, and no memory to pin.
    failed = {row["what"]: row["failure"] for row in rows if "failure" in row and "what" in row}
    assert set(failed) <= {"no host read in a training step", "batches are pinned"}, failed
    checks = [row for row in rows if row.get("what", "").startswith(("head", "norm"))]
    assert len(checks) == 3 + 9 + 2
    assert all(row["passed"] for row in checks), checks
    ways_taken = {(row["walk"], row["rows"], row["products"]) for row in rows if "walk" in row}
    assert ways_taken == {(way.walk, way.rows, way.products) for way in ways(on_cuda=True)}
    assert not [row for row in rows if "walk" in row and "failure" in row]


def test_a_card_is_timed_by_events_between_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []

    class Event:
        count = 0

        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self, stream: object) -> None:
            Event.count += 1
            self.at = Event.count
            log.append("event")

        def elapsed_time(self, end: "Event") -> float:
            return 2.0 * (end.at - self.at)  # ms

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: log.append("wait"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    timed = time_calls(
        lambda: log.append("call"), torch.device("cuda"), warmup=1, seconds=0.0, least=5
    )
    assert timed.seconds == [0.002] * 5
    first = ["call", "wait", "call", "wait", "wait"]  # warm-up, then one call to learn its length
    assert log == [*first, "event", *["call", "event"] * 5, "wait"]


def test_a_phase_whose_benchmark_has_ended_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = ModuleType("phase_that_runs")
    module.run = fails  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    run_phase(module.__name__, str(tmp_path / "notes.json"), "cpu", "tiny")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{time.time() + 60}\n"))
    with pytest.raises(RuntimeError, match="broken"):
        run_phase(module.__name__, str(tmp_path / "notes.json"), "cpu", "tiny")
    assert json.loads((tmp_path / "notes.json").read_text())["outcome"] == "error"
