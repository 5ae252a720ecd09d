"""A run that begins from another: who stays keeps weight and momentum, others begin anew."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from conftest import RunRanks
from facescale.checkpoint import tensors
from facescale.checkpoint.folder import checkpoints
from facescale.config import (
    Config,
    DataConfig,
    HeadConfig,
    OptimConfig,
    StartConfig,
    TrainConfig,
)
from facescale.training import build, train
from facescale.training.resume import save
from facescale.training.start import _old_labels, begin_from_
from runs import CPU, losses, small_run

OLD, NEW = 50, 41


def run_of(classes: int, start: StartConfig | None = None, shards: int | None = None) -> Config:
    return small_run(
        data=DataConfig(path="synthetic", num_classes=classes, num_images=64),
        head=HeadConfig(shards=shards),
        start=start or StartConfig(),
        train=TrainConfig(global_batch_size=8, steps=2),
    )


def old_run(rank: int, folder: Path) -> None:
    state = build(run_of(OLD), CPU)
    losses(state, 2)
    save(state, folder)


def old_label(label: int) -> int:
    """Another order, every seventh class new; each old one at most once."""
    return -1 if label % 7 == 0 else (label * 11 + 3) % OLD


def mapping(folder: Path) -> Path:
    path = folder / "classes.txt"
    lines = (str(old) if old >= 0 else "new" for old in map(old_label, range(NEW)))
    path.write_text("\n".join(lines))
    return path


def begun(rank: int, start: StartConfig) -> tuple[range, Tensor, Tensor, Tensor]:
    """The rows of this rank, those it would have without a start, and the backbone's momentum."""
    tensors.PIECE_ROWS = 7
    fresh = build(run_of(NEW), CPU)
    state = build(run_of(NEW, start), CPU)
    begin_from_(state, start)
    momentum = torch.cat([s["momentum_buffer"].flatten() for s in state.optimizer.state.values()])
    centres = state.head.centres
    return centres.rows, centres.table, fresh.head.centres.table, momentum


@pytest.mark.usefixtures("tiny_y1")
@pytest.mark.parametrize("by", ["labels", "names"])
def test_people_keep_their_rows_when_the_list_changes(
    run_ranks: RunRanks, tmp_path: Path, by: str
) -> None:
    run_ranks(old_run, 2, tmp_path / "old")
    path = checkpoints(tmp_path / "old/checkpoints")[-1]
    old = tensors.read_centres(path, range(OLD))
    assert old[:, 1].count_nonzero()
    start = StartConfig(checkpoint=str(tmp_path / "old"), classes=str(mapping(tmp_path)))
    if by == "names":
        lists = {"old": range(OLD), "new": [old_label(n) for n in range(NEW)]}
        for name, labels in lists.items():
            lines = (f"person {n}" if n >= 0 else f"new {k}" for k, n in enumerate(labels))
            (tmp_path / f"{name}.txt").write_text("\n".join(lines))
        names = [str(tmp_path / "old.txt"), str(tmp_path / "new.txt")]
        start = StartConfig(checkpoint=str(path), names=names)
    for classes, table, fresh, momentum in run_ranks(begun, 3, start):
        assert momentum.count_nonzero()
        for row, label in enumerate(classes):
            before = old_label(label)
            truth = fresh[row] if before < 0 else old[before]
            assert torch.equal(table[row], truth), label


@pytest.mark.usefixtures("tiny_y1")
def test_a_run_that_began_from_another_resumes_from_its_own(tmp_path: Path) -> None:
    train(run_of(OLD), tmp_path / "old")
    start = StartConfig(checkpoint=str(tmp_path / "old"), classes=str(mapping(tmp_path)))
    train(run_of(NEW, start), tmp_path / "new")
    (tmp_path / "old").rename(tmp_path / "gone")  # it is not needed again
    assert train(run_of(NEW, start), tmp_path / "new", resume=True).steps == 0


@pytest.mark.usefixtures("tiny_y1")
@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (None, "the checkpoint has 50 classes and the data 41; say who is who with start.classes"),
        (["0"] * 40, "has 40 lines, but the data has 41 classes"),
        (["new"] * 39 + ["7", "7"], "old class 7 is taken by two new ones"),
        (["new"] * 40 + ["50"], "line 41: '50' is neither `new` nor one of the labels 0 to 49"),
        (["new"] * 40 + ["-1"], "line 41: '-1' is neither `new` nor"),
    ],
)
def test_a_list_that_does_not_fit_is_refused(
    tmp_path: Path, lines: list[str] | None, message: str
) -> None:
    old_run(0, tmp_path)
    path = tmp_path / "classes.txt"
    path.write_text("\n".join(lines or []))
    start = StartConfig(checkpoint=str(tmp_path), classes=str(path) if lines else None)
    with pytest.raises(ValueError, match=message):
        begin_from_(build(run_of(NEW, start), CPU), start)


@pytest.mark.usefixtures("tiny_y1")
def test_another_optimizer_is_refused_with_what_to_do(tmp_path: Path) -> None:
    old_run(0, tmp_path)
    start = StartConfig(checkpoint=str(tmp_path))
    config = replace(run_of(OLD, start), optim=OptimConfig(name="adamw"))
    message = "its optimizer is SGD, but this run's is AdamW; set optim.name sgd, or take over"
    with pytest.raises(ValueError, match=message):
        begin_from_(build(config, CPU), start)


def test_a_mapping_needs_a_checkpoint() -> None:
    with pytest.raises(ValueError, match=r"need start\.checkpoint"):
        StartConfig(classes="classes.txt")
    with pytest.raises(ValueError, match="takes two files"):
        StartConfig(checkpoint="runs/x", names=["one.txt"])
    with pytest.raises(ValueError, match="give one of them"):
        StartConfig(checkpoint="runs/x", classes="classes.txt", names=["one.txt", "two.txt"])


@pytest.mark.timeout(20)
def test_a_duplicate_among_very_many_names_is_found_at_once(tmp_path: Path) -> None:
    count = 360_232
    names = [f"person {number}" for number in range(count)]
    old, new = tmp_path / "old.txt", tmp_path / "new.txt"
    old.write_text("\n".join(names))
    new.write_text("\n".join([*names[:-1], names[7]]))
    start = StartConfig(checkpoint="run", names=[str(old), str(new)])
    with pytest.raises(ValueError, match="old class 7 is taken by two new ones"):
        _old_labels(start, count, count, same_people=False)
    start = StartConfig(checkpoint="run", names=[str(new), str(old)])
    with pytest.raises(ValueError, match=r"new.txt: 'person 7' occurs twice"):
        _old_labels(start, count, count, same_people=False)


def begin(rank: int, folder: Path, names: list[str]) -> str:
    start = StartConfig(checkpoint=str(folder / "old"), classes=str(folder / names[rank]))
    try:
        begin_from_(build(run_of(3, start), CPU), start)
    except (ValueError, OSError) as error:
        return str(error)
    return "begun"


@pytest.mark.usefixtures("tiny_y1")
@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["one", "other"], "digest of the old labels is "),
        (["one", "gone"], "gone is not a file; it has a line for each class"),
    ],
)
def test_ranks_with_other_lists_are_refused_alike(
    run_ranks: RunRanks, tmp_path: Path, names: list[str], message: str
) -> None:
    old_run(0, tmp_path / "old")
    (tmp_path / "one").write_text("1\n2\nnew")
    (tmp_path / "other").write_text("2\n1\nnew")
    for said in run_ranks(begin, 2, tmp_path, names):
        assert message in said
