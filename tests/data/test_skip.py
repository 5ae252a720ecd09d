"""Records that a list leaves out: the others are read as before, and runs keep to their list."""

from pathlib import Path

import numpy as np
import pytest

from facescale.config import Config, DataConfig, TrainConfig
from facescale.data.folder import ImageFolder
from facescale.data.found import found_in
from facescale.data.skip import WithoutSkipped, header, leave_out, write_skip_list
from facescale.training import build, train
from facescale.training.dataset import make_order
from runs import CPU, small_run, write_people


@pytest.fixture
def people(tmp_path: Path) -> Path:
    return write_people(tmp_path / "people", {"a": 4, "b": 3, "c": 3})


def test_the_others_keep_their_order(people: Path, tmp_path: Path) -> None:
    faces = ImageFolder(people)
    path = tmp_path / "skip.txt"
    write_skip_list(path, found_in(faces), [(9, "cut"), (0, "broken:\nno image"), (5, ""), (4, "")])
    assert path.read_text().splitlines()[1:3] == ["9\tcut", "0\tbroken: no image"]
    kept = leave_out(faces, path)
    assert len(kept) == 6
    places = [1, 2, 3, 6, 7, 8]
    assert [kept.place(index) for index in range(6)] == places
    assert [kept.describe(i) for i in range(6)] == [faces.describe(i) for i in places]
    assert kept.labels().tolist() == [0, 0, 0, 1, 2, 2]
    assert kept.read(3).label == 1
    assert found_in(kept) == found_in(faces)._replace(num_images=6)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("3\n10\n", "line 2: '10' is no index of a record, which are 0 to 9"),
        ("-1\n", "line 1: '-1' is no index"),
        ("train.rec\n", "line 1: 'train.rec' is no index"),
        ("9" * 40, "line 1: '9{40}' is no index"),
        ("\n".join(map(str, range(10))), "leaves out all 10 records"),
        ("# records to leave out of 11 images of people ab\n", "of 11 images, and this one has 10"),
        ("# records to leave out of 10 images of people ab\n", "of other people or records"),
    ],
)
def test_a_wrong_list_is_one_error(people: Path, tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "skip.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        leave_out(ImageFolder(people), tmp_path / "skip.txt")


def test_a_list_by_hand_needs_no_first_line(people: Path, tmp_path: Path) -> None:
    (tmp_path / "skip.txt").write_text("# mine\n\n 3 blurred\n3\n1 # dark\n")
    assert leave_out(ImageFolder(people), tmp_path / "skip.txt").skipped.tolist() == [1, 3]
    assert "of 10 images" in header(found_in(ImageFolder(people)))
    with pytest.raises(FileNotFoundError):
        leave_out(ImageFolder(people), tmp_path / "none.txt")


def run_on(folder: Path, skip: Path | None, steps: int = 2, order: str = "shuffled") -> Config:
    data = DataConfig(
        path=str(folder),
        threads=1,
        skip=None if skip is None else str(skip),
        order=order,  # type: ignore[arg-type]
    )
    return small_run(data=data, train=TrainConfig(batch_size=4, steps=steps))


@pytest.mark.usefixtures("tiny_y1")
def test_a_run_leaves_them_out_and_keeps_to_its_list(people: Path, tmp_path: Path) -> None:
    skip, other = tmp_path / "skip.txt", tmp_path / "other.txt"
    skip.write_text("2\n")
    other.write_text("3\n")
    (people / "a" / "2.png").write_bytes(b"no image")
    state = build(run_on(people, skip), CPU)
    assert len(state.dataset) == 9
    assert isinstance(state.dataset, WithoutSkipped)
    with state.loader() as loader:
        seen = {int(i) for _ in range(5) for i in next(loader).indices}
    assert seen == set(range(9))
    output = tmp_path / "run"
    assert train(run_on(people, skip, 2), output).steps == 2  # every image was seen: 8 of 9
    for list_, order in ((None, "shuffled"), (other, "shuffled"), (skip, "balanced")):
        with pytest.raises(ValueError, match=r"data\.order and data\.skip that the run"):
            train(run_on(people, list_, 4, order), output, resume=True)
    assert train(run_on(people, skip, 3), output, resume=True).steps == 1


@pytest.mark.usefixtures("tiny_y1")
def test_a_balanced_run_resumes_on_the_same_samples(people: Path, tmp_path: Path) -> None:
    config = run_on(people, None, 4, "balanced")
    state = build(config, CPU)
    want = make_order(config.data, state.dataset, 0)
    assert (
        np.bincount(ImageFolder(people).labels()[want.indices(np.arange(30))]).tolist() == [10] * 3
    )
    with state.loader() as loader:
        whole = [next(loader).indices.tolist() for _ in range(4)]
    train(run_on(people, None, 2, "balanced"), tmp_path / "run")
    state.position = 8
    with state.loader() as loader:
        assert [next(loader).indices.tolist() for _ in range(2)] == whole[2:]
    assert train(config, tmp_path / "run", resume=True).steps == 2
