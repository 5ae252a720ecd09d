"""The page of a card: targets, the report's rows, tables; the figures are made up."""

import json
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from facescale.cli import bench_device, main
from facescale.report.device import plots
from facescale.report.device.gpu_rows import gpu_tables, record_of
from facescale.report.device.page import write_device_page
from facescale.report.device.results import DeviceSettings, Phase, Results, load
from facescale.report.device.tables import phase_tables
from facescale.report.device.targets import targets_table
from facescale.report.record import DONE, Record, Run
from facescale.report.record import load as load_record
from facescale.report.settings import Settings, settings_of

STEP: dict[str, Any] = {
    "network": "r100", "batch": 256, "precision": "bf16", "identities": 360_232,
    "dataset": "glint360k", "rate": 0.1, "who": "facescale", "way": "graphs", "ms": 100.0,
    "images_per_s": 2560.0, "flop": 72.5e9 * 256, "peak_gib": 40.0, "reserved_gib": 44.0,
}  # fmt: skip
HEAD: dict[str, Any] = {
    "identities": 360_232, "rate": 0.1, "batch": 128, "walk": "cuda", "rows": "float32",
    "products": "tf32x3", "ms": 0.25, "bytes": 3.7e8, "flop": 1.4e10,
}  # fmt: skip


def card() -> Results:
    """A card that ran some phases; one of them crashed."""
    report = STEP | {"precision": "float32", "batch": 64, "dataset": "emore", "identities": 85_742}
    light = STEP | {"network": "mbf", "way": "eager", "images_per_s": 10_000.0}
    limit = {
        "network": "r100", "batch": 64, "precision": "fp16", "identities": 4_000_000,
        "dataset": "emore", "rate": 0.1, "who": "facescale", "way": "eager", "what": "identities",
        "cap_gib": None, "predicted": 4_100_000, "fits": 4_000_000, "fails": 4_300_000,
        "memory": 80 << 30, "images_per_s": 900.0, "planned_gib": 77.0, "device_gib": 70.0,
    }  # fmt: skip
    largest = limit | {
        "what": "batch", "precision": "float32", "identities": 85_742, "rate": 1.0,
        "fits": 300, "batch": 300, "images_per_s": 800.0,
    }  # fmt: skip
    total = {
        "what": "total", "ms": 30.0, "busy_ms": 28.0, "idle_ms": 1.0, "launches": 900.0,
        "graph_launches": 0.0, "host_reads": 0.0, "late_reads": 2.0,
    }  # fmt: skip
    top = {"what": "operation", "name": "a|b", "ms": 9.0, "count": 3.0, "share": 0.3}
    product = {"what": "product", "unit": "FLOP/s", "ms": 1.0, "shape": [8192, 8192, 8192]}
    phases: dict[str, list[dict[str, Any]]] = {
        "ceilings": [
            {"what": "copy", "rate": 3e12, "unit": "B/s", "ms": 1.4},
            product | {"precision": "bf16", "rate": 8e14},
            product | {"precision": "tf32", "rate": 4e14},
        ],
        "kernels": [{"what": "a", "error": 2.0, "of": "y", "limit": 1e-5, "passed": False}],
        "head": [
            HEAD,
            HEAD | {"walk": "arcface_torch", "products": "float32", "ms": 3.0},
            HEAD | {"identities": 85_742, "rate": 1.0, "ms": 0.4, "bytes": 8.8e8, "flop": 3.4e10},
            HEAD | {"products": "bf16", "batch": 256, "ms": 0.5},
        ],
        "step": [
            STEP,
            STEP | {"who": "arcface_torch", "way": "eager", "images_per_s": 1600.0},
            STEP | {"dataset": "", "identities": 1024, "rate": 1.0, "ms": 99.9},
            report,
            report | {"rate": 1.0, "images_per_s": 650.0},
            light,
            light | {"way": "graphs", "images_per_s": 16_000.0},
            STEP | {"precision": "tf32", "failure": "out of memory: CUDA out of memory"},
        ],
        "memory_all": [
            limit,
            largest,
            limit | {"network": "mbf", "rows": "float32", "fits": 18_500_000, "dataset": ""},
        ],
        "profile": [STEP | total, STEP | top],
    }
    results = {name: Phase("done", seconds=9.0, rows=rows) for name, rows in phases.items()}
    results["backbone"] = Phase("killed by signal 9", "Killed")
    return Results(DeviceSettings("cuda", "gpu", 330.0), {"gpu": "NVIDIA H100"}, results)


def test_targets_say_what_is_reached_and_what_is_missing() -> None:
    rows = {row[0]: row[1:] for row in targets_table(card()).rows}
    assert rows["head, 360,232 at 0.1, b128, float32 rows, draw included"] == [
        "<= 0.2 ms",
        "0.25 ms",
        "0.05 ms (25%)",
    ]
    assert rows["the same against arcface_torch's plan"] == [">= 10 x", "12 x", "nothing"]
    # 0.88 GB at 3 TB/s; the products would take less
    assert rows["head, 85,742 at 1, over its floor"][1:] == ["1.36 x", "0.0636 x (5%)"]
    assert rows["R100 bf16 b256, full step"][1:] == ["2,560 images/s", "640 images/s (20%)"]
    assert rows["the same over arcface_torch's plan"][1:] == ["1.6 x", "nothing"]
    assert rows["mbf bf16 b256, CUDA graphs over eager"][1:] == ["1.6 x", "nothing"]
    assert rows["R100 tf32 b256, full step"][1:] == ["not measured", ""]
    assert rows["most identities, float32 rows"][1:] == ["18.5 million", "nothing"]
    (exposed,) = (row for name, row in rows.items() if "not hidden" in name)
    assert exposed[1:] == ["20 %", "nothing"]  # 0.1 of 0.5 ms


def test_the_reports_rows_are_beside_the_published_ones() -> None:
    emore, glint, y1, most = gpu_tables(card())
    rows = {(row[0], row[3]): row[4:] for row in emore.rows}
    for mode in ("Data parallelism", "Model parallelism"):  # the same work with one device
        assert rows[mode, "64"][:2] == ["650.00", "40.00"]
        assert rows[mode, "max (300)"][0] == "800.00"
    assert rows["Data parallelism", "64"][2:] == ["245.0", "241.82"]
    assert rows["Partial FC, 0.1", "64"][0] == "2560.00"
    assert {row[4] for table in (glint, y1) for row in table.rows} == {"not measured"}
    assert [row[1:] for row in most.rows] == [
        ["80.0 GiB", "4,000,000"],
        ["V100, 16 GB", "2,000,000"],
        ["V100, 16 GB", "1,800,000"],
    ]


def test_a_cpu_measures_no_row_of_a_card() -> None:
    results = card()
    results.settings = DeviceSettings("cpu", "cpu", 60.0)
    assert not record_of(results).cells
    assert {row[2] for row in targets_table(results).rows} == {"not measured"}
    assert {row[4] for table in gpu_tables(results)[:3] for row in table.rows} == {"not measured"}


def test_tables_and_plots_are_on_one_page(tmp_path: Path) -> None:
    results = card()
    html, markdown = (path.read_text() for path in write_device_page(results, tmp_path))
    assert "NVIDIA H100" in html
    assert html.count("data:image/png") == 3
    for text in (html, markdown):
        assert "killed by signal 9" in text
        assert "out of memory: CUDA out of memory" in text
        assert ">NO<" in text or "| NO |" in text
    record = load_record(tmp_path / "results.json")
    assert record.cells["emore_r100/partial_fc/most_identities on 1"].found == 4_000_000
    limits = next(table for table in phase_tables(results) if table.title == "Limits of memory")
    assert limits.rows[0][-1] == "+10.0%"


def test_a_damaged_file_is_one_error(tmp_path: Path) -> None:
    path = tmp_path / "device.json"
    settings = {"device": "cpu", "sizes": "tiny", "budget_s": 1}
    values: dict[str, Any] = {"format": "device 1", "settings": settings, "fingerprint": {}}
    phase: dict[str, Any] = {"outcome": "done", "rows": [{"what": "copy"}]}
    path.write_text(json.dumps(values | {"phases": {"ceilings": phase}}))
    with pytest.raises(ValueError, match="a row that is damaged: KeyError"):
        write_device_page(load(path), tmp_path)
    path.write_text(json.dumps(values | {"phases": {"head": {"rows": 3}}}))
    with pytest.raises(ValueError, match=r"phases\.head has no field 'outcome'"):
        load(path)


TOP: dict[str, Any] = {
    "what": "operation", "who": "facescale", "ms": 1.0, "count": 1.0, "share": 0.1
}  # fmt: skip


@pytest.mark.parametrize(
    ("phase", "row"),
    [
        ("step", STEP | {"ms": 0.0}),
        ("profile", TOP | {"name": 3}),
    ],
)
def test_a_damaged_row_is_one_error(phase: str, row: dict[str, Any], tmp_path: Path) -> None:
    results = card()
    results.phases[phase].rows.append(row)
    with pytest.raises(ValueError, match=r"device\.json has a row that is damaged"):
        write_device_page(results, tmp_path)


def test_the_results_of_a_report_are_not_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "results.json"
    record = Record(settings_of(Settings()), {})
    record.cell("emore_r100/partial_fc/64", 1).runs = [Run(DONE, rates=[4.0])]
    record.save(path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="is of `facescale bench report` and would be overwritten"):
        write_device_page(card(), tmp_path)
    monkeypatch.setattr(bench_device, "measured_device", lambda chosen: "cuda")
    with pytest.raises(SystemExit):  # before anything is measured
        main(["bench", "device", "--output", str(tmp_path)])
    assert "would be overwritten; pass another --output" in capsys.readouterr().err
    assert {file.name for file in tmp_path.iterdir()} == {"results.json"}
    assert path.read_bytes() == before
    path.unlink()
    for _ in range(2):  # its own are written anew
        write_device_page(card(), tmp_path)
    assert load_record(path).cells


def test_a_plot_has_every_operation_under_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Figure] = []

    def keep(figure: Figure) -> bytes:
        found.append(figure)
        return b"png"

    monkeypatch.setattr(plots, "png", keep)
    results = card()
    long = "void at::native::vectorized_elementwise_kernel<4, "
    names = {f"{long}one>": 5.0, f"{long}other>": 2.0, "_ZN7cutlass6Kernel": 1.0}
    results.phases["profile"].rows = [
        {"what": "operation", "who": "facescale", "name": name, "ms": ms}
        for name, ms in names.items()
    ]
    plots.figures(results)
    (axes,) = found[-1].axes
    bars = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    assert [bar.get_height() for bar in bars] == [7.0, 1.0]
    (legend,) = found[-1].legends
    assert [text.get_text() for text in legend.get_texts()] == [long[:40], " _ZN7cutlass6Kernel"]


def test_a_head_of_which_no_figure_is_to_be_drawn_is_left_out(tmp_path: Path) -> None:
    results = card()
    results.phases["head"].rows = [HEAD | {"rows": "bfloat16"}]
    html, _ = write_device_page(results, tmp_path)
    assert html.read_text().count("data:image/png") == 2
