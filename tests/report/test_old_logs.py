"""Logs of the three systems, counted as in DLPerf; the lines are made up in their form."""

import time
from pathlib import Path

import pytest

from facescale.report.old_logs import read_cells, read_log


def written(path: Path, lines: list[str]) -> Path:
    path.write_text("a line of something else\n" + "\n".join(lines) + "\n")
    return path


def test_oneflow_counts_the_20th_to_the_120th_after_iteration_5(tmp_path: Path) -> None:
    lines = [f"train: iter {i}, loss {20 - i / 10:.4f}, throughput: {float(i)}" for i in range(151)]
    system, run = read_log(written(tmp_path / "of.log", lines))
    assert system == "OneFlow"
    # 6 is the first that is read; 19 more go; 101 readings remain: 25 to 125
    assert run.rates == [float(i) for i in range(25, 126)]
    assert run.rate == 75.0


def test_mxnet_arcface_counts_five_readings_after_the_first(tmp_path: Path) -> None:
    lines = [
        f"INFO:root:Epoch[0] Batch [{20 * i}]\tSpeed: {100 + i}.5 samples/sec\tacc=0.0"
        for i in range(8)
    ]
    system, run = read_log(written(tmp_path / "mx.log", lines))
    assert system == "MXNet"
    assert run.rates == [101.5, 102.5, 103.5, 104.5, 105.5]


def test_mxnet_partial_fc_counts_the_total_from_the_20th_on(tmp_path: Path) -> None:
    lines = [f"Iter:{i} Rank:3.00 it/sec Total:{i}.00 it/sec" for i in range(60)]
    system, run = read_log(written(tmp_path / "pfc.log", lines))
    assert system == "MXNet"
    assert run.rates == [float(i) for i in range(19, 60)]


def test_arcface_torch_and_facescale_lines_are_read(tmp_path: Path) -> None:
    lines = [
        f"Training: 2026-01-01 10:00:{i:02d},000-Speed {1000 + i}.00 samples/sec   Loss 40.0   "
        f"LearningRate 0.1   Epoch: 0   Global Step: {10 * i}   Required: 10 hours"
        for i in range(10)
    ]
    system, run = read_log(written(tmp_path / "at.log", lines))
    assert system == "arcface_torch"
    assert run.rates == [1000.0 + i for i in range(2, 10)]


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nosuch"):
        read_log(tmp_path / "nosuch")
    with pytest.raises(ValueError, match="no line of OneFlow"):
        read_log(written(tmp_path / "empty.log", []))
    short = written(tmp_path / "short.log", ["train: iter 9, loss 1.0, throughput: 3.0"])
    with pytest.raises(ValueError, match="all 1 lines of OneFlow are warm-up"):
        read_log(short)
    for entry, message in (
        ("nonsense", "write CASE@DEVICES=FILES"),
        (f"emore_r50/x/64@8={short}", "no case 'emore_r50/x/64'"),
        (f"emore_r100/partial_fc/most_identities@8={short}", "no case 'emore_r100/partial_fc/m"),
    ):
        with pytest.raises(ValueError, match=message):
            read_cells(entry)
    with pytest.raises(FileNotFoundError, match="no file matches"):
        read_cells(f"emore_y1/data_parallel/256@1={tmp_path}/no/*.log")


@pytest.mark.parametrize(
    "text",
    ["train: iter 1,", "Iter:" + "1" * 995, "Training: ", "Speed: 1", "Iter: \t  ", "throughput: "],
)
def test_a_line_of_half_a_megabyte_takes_linear_time(tmp_path: Path, text: str) -> None:
    path = written(tmp_path / "long.log", [text * (500_000 // len(text))])
    began = time.process_time()
    with pytest.raises(ValueError, match="no line of OneFlow"):
        read_log(path)
    assert time.process_time() - began < 1.0  # 0.1 s here; quadratic time is minutes


def test_numbers_too_long_for_a_float_or_an_int_are_no_readings(tmp_path: Path) -> None:
    huge = [f"train: iter {'9' * 5000}, loss 1.0, throughput: 1.0", "Speed: 1e999 samples/sec"]
    with pytest.raises(ValueError, match="no line of OneFlow"):
        read_log(written(tmp_path / "huge.log", huge))
