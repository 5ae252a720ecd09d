"""The report's pages: their tables, plots and notes."""

import re
import signal
from base64 import b64encode
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from facescale.cli import main
from facescale.report.cases import select
from facescale.report.page import procedure, write_comparison, write_report
from facescale.report.record import DONE, Record, Run, load
from facescale.report.tables import series_of, throughput_table

SETTINGS: dict[str, Any] = {
    "devices": [1, 2],
    "runs": 2,
    "iterations": 30,
    "counted": 20,
    "pause_s": 0.0,
    "batch": 4,
    "data": {},
    "memory": [],
    "device": "cpu",
    "threads": 1,
    "precision": None,
    "search_precision": 0.04,
    "timeout_s": 60.0,
}


def made_up(factor: float = 1.0) -> Record:
    record = Record(SETTINGS, {"torch": "2.13", "gpu": None, "cores": 2})
    for name, classes in (("emore_r100", 85_742), ("glint360k_r100", 360_232)):
        for devices, rates in ((1, [4.0, 6.0]), (2, [8.0, 9.0])):
            cell = record.cell(f"{name}/partial_fc/64", devices)
            cell.batch, cell.num_classes, cell.command = 4, classes, f"torchrun {devices} <x>"
            cell.runs = [Run(DONE, rates=[factor * rate], peak_gib=2.5) for rate in rates]
    failed = record.cell("glint360k_r100/data_parallel/64", 1)
    failed.runs = [Run("out of memory", reason="RuntimeError: refused")]
    for memory in (4 << 30, 8 << 30):
        cell = record.cell("emore_r100/partial_fc/most_identities", 1, memory)
        cell.batch, cell.found = 4, memory // 4096
        cell.tries = [Run(DONE, rates=[1.0], peak_gib=1.0 + n / 1e6, number=n) for n in (10**5,)]
        cell.tries += [Run(DONE, rates=[1.0], peak_gib=2.0, number=10**6)]
    return record


def test_a_table_has_the_reports_rows_and_marks_what_is_published() -> None:
    record = made_up()
    table = throughput_table(record, select(["emore_r100/partial_fc/64"])[0])
    rows = {row[0]: row for row in table.rows}
    assert list(rows) == ["1", "2", "4", "8"]
    assert rows["2"][2:6] == ["8.50", "8.00 to 9.00", "1.70", "2.50"]
    assert rows["8"][2] == "not run"
    assert rows["8"][-2:] == ["1864.31", "1586.09"]
    assert [table.is_published(place) for place in range(len(table.columns))][-3:] == [
        False,
        True,
        True,
    ]
    assert table.notes == ["Batch 4 here, 64 in the report."]


def test_a_failed_case_is_a_cell_that_says_why() -> None:
    table = throughput_table(made_up(), select(["glint360k_r100/data_parallel/64"])[0])
    assert table.rows[0][2] == "out of memory: RuntimeError: refused"
    assert table.rows[0][-1] == "OOM"


def test_speed_up_is_against_one_device() -> None:
    series = {s.name: s for s in series_of(made_up(), select(["emore_r100/partial_fc/64"])[0])}
    assert series["this run"].speed_up() == {1: 1.0, 2: 1.7}
    assert series["published, OneFlow"].speed_up()[8] == pytest.approx(1864.31 / 247.97)


def test_what_differs_from_the_report_is_said() -> None:
    said = " ".join(procedure(SETTINGS))
    reduced = "2 runs in place of 5; 30 iterations in place of 150; batch 4 in place of 64 and 256"
    assert f"Different from the report: {reduced}." in said
    assert "synthetic" in said
    own = {"emore_y1": {"batch": 64, "iterations": 150}}
    said = " ".join(procedure(SETTINGS | {"own": own}))
    assert "; face_emore, Y1 with batch 64 and iterations 150." in said
    more = SETTINGS | {"batch": None, "runs": 9, "iterations": 150, "own": own}
    assert "Different from the report: 9 runs in place of 5; face_emore" in " ".join(
        procedure(more)
    )


def test_the_page_is_whole_in_itself_and_escapes_what_it_shows(tmp_path: Path) -> None:
    html_path, markdown_path = write_report(made_up(), tmp_path)
    html, markdown = html_path.read_text(), markdown_path.read_text()
    sources = re.findall(r'(?:src|href)="([^"]*)"', html)
    assert len(sources) == 5  # three cases, two plots against identities
    assert "<script" not in html
    assert "&lt;x&gt;" in html
    pictures = re.findall(r"\]\((.*?)\)", markdown)
    assert len(pictures) == 5
    for source, picture in zip(sources, pictures, strict=True):
        png = (tmp_path / picture).read_bytes()
        assert source == f"data:image/png;base64,{b64encode(png).decode()}"
        with Image.open(BytesIO(png), formats=["PNG"]) as image:
            assert image.width == 1050
        assert len(png) < 50_000
    for text in (html, markdown):
        assert "out of memory: RuntimeError: refused" in text
        assert "2,097,152" in text
        assert "13,500,000" in text
    # every row of a Markdown table has as many cells as its head
    for block in re.findall(r"(?:^\|.*\n)+", markdown, re.MULTILINE):
        assert len({line.count("|") for line in block.splitlines()}) == 1, block


def test_two_benchmarks_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, factor in (("a", 1.0), ("b", 1.5)):
        made_up(factor).save(tmp_path / f"{name}.json")
    files = [str(tmp_path / "a.json"), str(tmp_path / "b.json")]
    main(["bench", "report", "--output", str(tmp_path), "--compare", *files])
    said = capsys.readouterr().out
    assert re.search(r"emore_r100/partial_fc/64 \| 2 \| 4 \| 4 \| 8.50 \| 12.75 \| 1.500", said)
    assert (tmp_path / "comparison.html").is_file()
    with pytest.raises(FileNotFoundError, match=r"c\.json is not a file"):
        write_comparison(tmp_path / "a.json", tmp_path / "c.json", tmp_path)


def test_logs_of_other_systems_join_the_report(tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    for run in (1, 2):
        lines = [f"Iter:{i} Rank:1.00 it/sec Total:{100 * run}.0 it/sec" for i in range(40)]
        (logs / f"r100_b64_fp32_{run}.log").write_text("\n".join(lines))
    entry = f"emore_r100/partial_fc/64@8={logs}/*.log"
    options = ["--cases", "none", "--output", str(tmp_path), "--logs", entry, "--device", "cpu"]
    handler = signal.getsignal(signal.SIGTERM)
    main(["bench", "report", *options])
    assert signal.getsignal(signal.SIGTERM) is handler
    markdown = (tmp_path / "report.md").read_text()
    row = next(line for line in markdown.splitlines() if line.startswith("| 8 |"))
    assert "| 150.00 |" in row
    assert "MXNet, samples/s" in markdown


def test_pages_are_written_again_from_the_results_alone(tmp_path: Path) -> None:
    made_up().save(tmp_path / "results.json")
    main(["bench", "page", str(tmp_path / "results.json"), "--output", str(tmp_path / "pages")])
    names = {path.name for path in (tmp_path / "pages").iterdir()}
    assert names == {"report.md", "report.html", *(f"report-{n}.png" for n in range(1, 6))}
    assert {path.name for path in tmp_path.iterdir()} == {"results.json", "pages"}


def test_the_shipped_report_is_what_its_results_say(tmp_path: Path) -> None:
    shipped = Path(__file__).parents[2] / "docs" / "report"
    write_report(load(shipped / "results.json"), tmp_path)
    assert (tmp_path / "report.md").read_text() == (shipped / "report.md").read_text()
    pictures = {path.name for path in shipped.glob("*.png")}
    assert pictures == {path.name for path in tmp_path.glob("*.png")}
    assert sum(path.stat().st_size for path in shipped.glob("*.png")) < 500_000
    assert {path.suffix for path in shipped.iterdir()} <= {".md", ".png", ".json", ".html"}
