"""People or images are held out; sets are put together; labels and names go along."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from damage import face, records
from facescale.cli import main
from facescale.data.dataset import open_dataset
from facescale.data.sidecars import write_names
from facescale.datasets.merge import merge
from facescale.datasets.names import labels_named
from facescale.datasets.split import Holdout, draw_people, split
from facescale.datasets.subset import Subset, readable_labels, shuffled, write_subset

NAMES = ["ann", "bob", "cem", "dora", "eva"]
LABELS = [0, 0, 0, 1, 3, 3, 4, 4, 4, 4]  # cem has no image


@pytest.fixture
def five(tmp_path: Path) -> Path:
    folder = records(tmp_path / "five", [(face(i), label) for i, label in enumerate(LABELS)], 5)
    write_names(folder, NAMES)
    return folder


def content(path: Path) -> list[tuple[int, str]]:
    """Which of the ten faces a set has, and whose."""
    made = open_dataset(path)
    faces = {face(i): i for i in range(20)}
    samples = [made.read(index) for index in range(len(made))]
    names = made.class_names  # type: ignore[attr-defined]
    return [(faces[bytes(sample.encoded)], names[sample.label]) for sample in samples]


def test_people_are_held_out(five: Path, tmp_path: Path) -> None:
    dataset = open_dataset(five)
    rest, out = split(dataset, readable_labels(dataset, five), Holdout(people=(1, 4)))
    write_subset(rest, tmp_path / "a", 1)
    write_subset(out, tmp_path / "b", 1)
    assert content(tmp_path / "a") == [(i, NAMES[LABELS[i]]) for i in (0, 1, 2, 4, 5)]
    assert content(tmp_path / "b") == [(i, NAMES[LABELS[i]]) for i in (3, 6, 7, 8, 9)]
    assert (tmp_path / "a" / "classes.txt").read_text().split() == ["0", "3"]
    assert (tmp_path / "b" / "classes.txt").read_text().split() == ["1", "4"]
    assert (tmp_path / "b" / "names.txt").read_text().split() == ["bob", "eva"]


def test_a_set_does_not_appear_without_its_old_labels(
    five: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = open_dataset(five)
    rest, _ = split(dataset, readable_labels(dataset, five), Holdout(people=(1, 4)))

    def fail(path: Path, parts: object) -> None:
        raise OSError(28, "No space left on device", str(path))

    with monkeypatch.context() as patch:
        patch.setattr("facescale.datasets.subset.write_whole", fail)
        with pytest.raises(OSError, match="No space left"):
            write_subset(rest, tmp_path / "a", 1)
    assert not (tmp_path / "a").exists()
    write_subset(rest, tmp_path / "a", 1)
    assert (tmp_path / "a" / "classes.txt").read_text().split() == ["0", "3"]


def test_images_of_each_are_held_out_under_the_same_labels(five: Path) -> None:
    dataset = open_dataset(five)
    labels = readable_labels(dataset, five)
    rest, out = split(dataset, labels, Holdout(people=(3,), images=2, seed=1))
    assert rest.class_names == ["ann", "bob", "eva"]
    assert out.class_names == ["ann", "bob", "eva", "dora"]
    assert np.bincount(rest.labels()).tolist() == [1, 1, 2]
    assert np.bincount(out.labels(), minlength=4).tolist() == [2, 0, 2, 2]
    whole = {rest.describe(i) for i in range(len(rest))} | {
        out.describe(i) for i in range(len(out))
    }
    assert len(whole) == 10
    again = split(dataset, labels, Holdout(people=(3,), images=2, seed=1))[1]
    other = split(dataset, labels, Holdout(people=(3,), images=2, seed=2))[1]
    assert again.found() == out.found()
    assert other.found() != out.found()


def test_people_are_drawn_by_the_seed() -> None:
    labels = np.repeat(np.arange(100), 2)
    drawn = draw_people(labels, 10, seed=0)
    assert len(set(drawn)) == 10
    assert drawn == draw_people(labels, 10, seed=0)
    assert drawn != draw_people(labels, 10, seed=1)
    assert sorted(shuffled(7, 3).tolist()) == list(range(7))
    for count in (0, 100):
        with pytest.raises(ValueError, match="people cannot be held out of 100"):
            draw_people(labels, count, seed=0)


def test_all_people_of_a_name_are_found(five: Path) -> None:
    write_names(five, ["ann", "bob", "cem", "ann", "eva"])
    assert labels_named(open_dataset(five), ["eva", "ann"], "list.txt") == [4, 0, 3]
    (five / "names.txt").unlink()
    assert labels_named(open_dataset(five), ["3"], "list.txt") == [3]
    for name in ("ann", "5"):
        with pytest.raises(ValueError, match=f"list.txt: '{name}', but the data set has no names"):
            labels_named(open_dataset(five), [name], "list.txt")


def test_nothing_and_everything_are_refused(five: Path) -> None:
    dataset = open_dataset(five)
    labels = np.arange(5)
    with pytest.raises(ValueError, match="nothing is held out: every person has one image"):
        split(dataset, labels, Holdout(images=1))
    with pytest.raises(ValueError, match="nothing is left to train on"):
        split(dataset, labels, Holdout(people=(0, 1, 2, 3, 4)))


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as ending:
        main(["data", *words])
    assert ending.value.code == 2
    return capsys.readouterr().err


def test_the_command_splits(five: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "people.txt").write_text("bob\neva\n")
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    main(["data", "split", str(five), a, b, "--list", str(tmp_path / "people.txt")])
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"{a}: 5 images of 2 people; names.txt, classes.txt"
    assert said[1] == f"{b}: 5 images of 2 people; names.txt, classes.txt"
    shutil.rmtree(b)  # as where the command was killed between the two
    again = ("split", str(five), a, b, "--list", str(tmp_path / "people.txt"))
    main(["data", *again])
    assert capsys.readouterr().out.splitlines() == said
    assert "exists already" in refused(capsys, *again)
    shutil.rmtree(b)
    assert "a exists already" in refused(capsys, "split", str(five), a, b, "--people", "1")
    c, d = str(tmp_path / "c"), str(tmp_path / "d")
    main(["data", "split", str(five), c, d, "--fraction", "0.5", "--seed", "2", "--json"])
    assert json.loads(capsys.readouterr().out)["people_held_out"] == 2
    assert "exists already" in refused(capsys, "split", str(five), a, b, "--people", "1")
    words = ("split", str(five), c + "2", d + "2")
    assert "say what is held out" in refused(capsys, *words)
    (tmp_path / "people.txt").write_text("zoe\n")
    assert "no person of that name" in refused(
        capsys, *words, "--list", str(tmp_path / "people.txt")
    )


def two_sets(tmp_path: Path) -> tuple[Path, Path]:
    first = records(tmp_path / "first", [(face(0), 0), (face(1), 1), (face(2), 1)], 2)
    second = records(tmp_path / "second", [(face(3), 0), (face(4), 1), (face(5), 2)], 3)
    write_names(first, ["ann", "bob"])
    write_names(second, ["cem", "ann", "dora"])
    return first, second


@pytest.mark.parametrize(
    ("people", "want"),
    [
        ("same", [(0, "ann"), (4, "ann"), (1, "bob"), (2, "bob"), (3, "cem"), (5, "dora")]),
        ("apart", [(0, "ann"), (1, "bob"), (2, "bob"), (3, "cem"), (4, "ann (2)"), (5, "dora")]),
    ],
)
def test_sets_are_merged(
    people: str,
    want: list[tuple[int, str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    first, second = two_sets(tmp_path)
    out = tmp_path / "both"
    main(["data", "merge", str(first), str(second), str(out), "--people", people])
    assert content(out) == want
    said = capsys.readouterr().out
    assert f"6 images of {4 if people == 'same' else 5} people; names.txt" in said
    assert ("1 people are in several sets" in said) == (people == "same")


def test_sets_without_names_are_merged_apart_alone(tmp_path: Path) -> None:
    first, second = two_sets(tmp_path)
    (first / "names.txt").unlink()
    sets = [open_dataset(first), open_dataset(second)]
    with pytest.raises(ValueError, match=r"first has no names.txt, so nobody knows who is in both"):
        merge(sets, ["first", "second"], "same")
    assert merge(sets, ["first", "second"], "apart").class_names == ["0", "1", "cem", "ann", "dora"]
    write_names(first, ["ann", "ann"])
    with pytest.raises(ValueError, match="first names two people 'ann'"):
        merge([open_dataset(first), sets[1]], ["first", "second"], "same")
    merged = merge([sets[0], sets[0]], ["first", "first"], "apart")
    assert (merged.class_names, merged.num_classes) == (None, 4)
    assert isinstance(merged, Subset)


def test_labels_that_cannot_be_read_are_refused(five: Path) -> None:
    (five / "property").write_text("4,112,112\n")
    (five / "names.txt").unlink()
    with pytest.raises(ValueError, match="4 records have no readable label, such as"):
        readable_labels(open_dataset(five), five)
