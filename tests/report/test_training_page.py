"""Runs of any length and state on one page, which needs nothing else."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from facescale.cli import main
from facescale.config import Config, OptimConfig, TrainConfig
from facescale.report import training_plots
from facescale.report.training_page import write_page
from facescale.report.training_plots import SMOOTHED, _thinned
from facescale.report.training_runs import read_runs


def make_run(
    folder: Path, steps: int, of: int, lr: float = 0.1, sets: tuple[str, ...] = ("lfw",)
) -> Path:
    """A run folder that has done `steps` steps of `of`."""
    folder.mkdir(parents=True)
    config = Config(optim=OptimConfig(lr=lr), train=TrainConfig(steps=of))
    (folder / "config.yaml").write_text(config.to_yaml())
    rows: list[dict[str, Any]] = []
    for step in range(10, steps + 1, 10):
        loss, rate = 40 / (1 + step / 100) + step % 3 / 5, 5.0 if step == 10 else 100 * lr
        row = {"step": step, "epoch": step / 50, "loss": loss, "lr": lr * (1 - step / of)}
        rows.append({**row, "images_per_s": rate, "wait_s": 1.5, "peak_gib": 2.0})
        if step % 100 == 0:
            for name in sets:
                accuracy = 0.5 + 0.4 * step / of - (0.1 if step == steps else 0)
                figures = {"accuracy": accuracy, "tar": 0.8, "auc": 0.99, "eer": 0.03}
                rows.append({"step": step, **{f"{name}/{k}": v for k, v in figures.items()}})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if steps == of:
        (folder / "model.safetensors").touch()
    return folder


def test_a_page_has_all_runs_and_needs_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [
        make_run(tmp_path / "a" / "r50", 400, 400),
        make_run(tmp_path / "b" / "r50", 300, 900, lr=0.2, sets=("lfw", "cfp_fp")),
        make_run(tmp_path / "<new>", 0, 900),
    ]
    (runs[2] / "metrics.jsonl").unlink()
    main(["compare", *map(str, runs), "--output", str(tmp_path / "new" / "page.html")])
    assert capsys.readouterr().out == f"{tmp_path}/new/page.html\n"
    page = (tmp_path / "new" / "page.html").read_text()
    assert not re.search(r'(?:src|href|srcset)="(?!data:image/png;base64,)', page)
    assert "url(" not in page
    assert page.count("data:image/png") == 2 * 5  # two sets, loss, lr, speed; wide and narrow
    text = " ".join(re.sub(r"<[^>]*>", " ", page.split("<body>")[1]).split())
    assert "a/r50 finished 400 8.00" in text
    assert "b/r50 not finished: step 300 of 900" in text
    assert "&lt;new&gt; no figures yet" in text
    assert "a/r50 80.00 % 300 80.00 %" in text  # the last one is no better
    assert "a/r50 10.0 1.00 1.5" in text
    assert "b/r50 20.0 2.00" in text
    assert "optim.lr 0.1 0.2 0.1" in text
    assert "train.steps 400 900 900" in text
    assert "head.scale" not in text


def test_runs_without_figures_and_alike_have_a_page(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name, 0, 100) for name in "ab"]
    write_page(read_runs(list(map(str, runs))), tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "No run has figures yet." in page
    assert "All options are alike." in page
    assert "not finished: step 0" not in page


def test_a_run_that_stopped_early_says_so(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", 300, 900)
    (run / "model.safetensors").touch()
    (found,) = read_runs([str(run)])
    assert found.state == "finished early at step 300 of 900"
    assert found.rate == 10.0  # without the first record


def test_the_steps_of_epochs_are_told_by_the_epoch_reached(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", 300, 900)
    config = Config(train=TrainConfig(epochs=12.0))
    (run / "config.yaml").write_text(config.to_yaml())
    assert read_runs([str(run)])[0].num_steps == 600


LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 6)
)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.yaml", "{", "config.yaml is not YAML"),
        ("metrics.jsonl", "{}\n", "metrics.jsonl, line 1 is no record"),
        ("config.yaml", LAUGHS, "config.yaml unfolds to more than 100,000 values"),
        ("other", "", "is no run: it has neither config.yaml nor metrics.jsonl"),
    ],
)
def test_a_folder_that_is_no_run_is_one_line(
    tmp_path: Path, name: str, content: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / name).write_text(content)
    with pytest.raises(SystemExit):
        main(["compare", str(tmp_path / "a"), "--output", str(tmp_path / "page.html")])
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_a_run_given_twice_is_refused(tmp_path: Path) -> None:
    run = str(make_run(tmp_path / "a", 100, 100))
    with pytest.raises(ValueError, match="given twice"):
        read_runs([run, f"{run}/../a"])


def test_long_curves_are_thinned_to_means() -> None:
    steps, values = _thinned([(step, float(step % 2)) for step in range(10_000)])
    assert len(steps) == len(values) == SMOOTHED
    assert values == [0.5] * SMOOTHED
    assert steps[0] == 24.5


def test_the_legend_has_names_that_matplotlib_reads_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [make_run(tmp_path / name, 100, 100) for name in ("_old", "a$x_$")]
    shown: list[list[str]] = []

    def draw(figure: Figure) -> bytes:
        figure.draw_without_rendering()
        shown.extend([text.get_text() for text in legend.get_texts()] for legend in figure.legends)
        return b"png"

    monkeypatch.setattr(training_plots, "png", draw)
    assert training_plots.plot_runs(read_runs(list(map(str, runs))))
    assert {tuple(names) for names in shown} == {(" _old", r"a\$x_\$")}
