"""Several sets as one, in the reader and in a run."""

from pathlib import Path

import numpy as np
import pytest

from facescale.cli import main
from facescale.cli.layers import parse_layer
from facescale.data.dataset import found_in, open_dataset
from facescale.data.labels import labels_of
from facescale.data.unreadable import UnreadableRecord
from facescale.datasets.convert import Options, convert
from records import jpeg, recordio_set


def people(folder: Path, **counts: int) -> Path:
    random = np.random.default_rng(len(counts))
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            (folder / name / f"{number}.jpg").write_bytes(jpeg(random))
    return folder


@pytest.fixture
def two(tmp_path: Path) -> list[Path]:
    return [
        people(tmp_path / "a", ann=2, bob=1, cid=2),
        people(tmp_path / "b", bob=3, dan=2),
    ]


def test_people_are_apart_or_joined_by_their_names(two: list[Path]) -> None:
    apart = open_dataset(two)
    joined = open_dataset(two, people="by_name")
    assert (len(apart), apart.num_classes, joined.num_classes) == (10, 5, 4)
    labels = [apart.read(index).label for index in range(10)]
    assert labels == labels_of(apart).tolist() == [0, 0, 1, 2, 2, 3, 3, 3, 4, 4]
    labels = [joined.read(index).label for index in range(10)]
    assert labels == labels_of(joined).tolist() == [0, 0, 1, 2, 2, 1, 1, 1, 3, 3]
    assert joined.class_names == ["ann", "bob", "cid", "dan"]  # type: ignore[attr-defined]
    assert joined.describe(5).endswith("b/bob/0.jpg")
    assert str(found_in(joined)) == "10 images of 4 people"


def test_names_that_several_sets_have_are_pointed_out(
    two: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    open_dataset(two)
    assert "1 names occur in several of the sets" in caplog.text


def test_the_fingerprint_is_of_people_and_order(two: list[Path]) -> None:
    sets = [
        open_dataset(two),
        open_dataset(two[::-1]),
        open_dataset(two, people="by_name"),
        open_dataset(two[::-1], people="by_name"),
        open_dataset(two[0]),
    ]
    assert len({found_in(dataset).people for dataset in sets}) == 5


def test_a_set_without_names_cannot_be_joined_by_name(two: list[Path], tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    recordio_set(tmp_path / "c", [0, 0, 1], np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"data set 2 of 2 does not name its people.*names\.txt"):
        open_dataset([two[0], tmp_path / "c"], people="by_name")
    assert open_dataset([two[0], tmp_path / "c"]).num_classes == 5
    (tmp_path / "c" / "names.txt").write_text("ann\nzoe\n")
    assert open_dataset([two[0], tmp_path / "c"], people="by_name").num_classes == 4


@pytest.mark.parametrize("text", [b"\xef\xbb\xbfann\r\nzoe\r\n", b"ann\r\nzoe", b"ann\nzoe"])
def test_names_may_be_written_by_any_editor(two: list[Path], tmp_path: Path, text: bytes) -> None:
    (tmp_path / "c").mkdir()
    recordio_set(tmp_path / "c", [0, 0, 1], np.random.default_rng(0))
    (tmp_path / "c" / "names.txt").write_bytes(text)
    joined = open_dataset([two[0], tmp_path / "c"], people="by_name")
    assert joined.class_names == ["ann", "bob", "cid", "zoe"]  # type: ignore[attr-defined]


def test_a_damaged_image_keeps_its_place_among_all(two: list[Path]) -> None:
    joined = open_dataset(two)
    (two[1] / "dan" / "1.jpg").unlink()
    with pytest.raises((UnreadableRecord, OSError)):
        joined.read(9)


def options(*more: str) -> list[str]:
    words = "--backbone.name y1 --train.batch_size 4 --train.steps 2 --device cpu --log_every 1"
    return [*words.split(), *more]


@pytest.mark.usefixtures("tiny_y1")
def test_a_run_trains_on_joined_sets_of_every_format_and_resumes_on_the_same_people(
    two: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for to in ("recordio", "ofrecord", "tar"):
        convert(open_dataset(two[0]), tmp_path / to, Options(to=to))
    paths = ", ".join(str(path) for path in (two[1], *map(tmp_path.joinpath, ("tar", "ofrecord"))))
    run = ["--output", str(tmp_path / "run")]
    by_name = ["--data.people", "by_name"]
    main(["train", "emore_r100", *options("--data.path", f"[{paths}]", *by_name), *run])
    assert "15 images of 4 people" in capsys.readouterr().out
    main(["train", str(tmp_path / "run" / "config.yaml"), "--resume", "--train.steps", "3"])
    with pytest.raises(SystemExit):
        main(
            [
                *["train", str(tmp_path / "run" / "config.yaml"), "--resume"],
                *["--data.path", str(two[0])],
            ]
        )
    assert "start.names" in capsys.readouterr().err


@pytest.mark.usefixtures("tiny_y1")
def test_a_run_goes_on_with_the_same_people_in_another_format(
    two: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for to in ("recordio", "ofrecord", "tar"):
        convert(open_dataset(two[0]), tmp_path / to, Options(to=to))
    run = ["--output", str(tmp_path / "run")]
    main(["train", "emore_r100", *options("--data.path", str(two[0])), *run])
    for steps, to in ((3, "recordio"), (4, "ofrecord"), (5, "tar")):
        more = options("--data.path", str(tmp_path / to), "--train.steps", str(steps))
        main(["train", "emore_r100", *more, *run, "--resume"])
        assert "5 images of 3 people" in capsys.readouterr().out
    names = tmp_path / "tar" / "names.txt"
    names.write_text("".join(reversed(names.read_text().splitlines(keepends=True))))
    more = options("--data.path", str(tmp_path / "tar"), "--train.steps", "9")
    with pytest.raises(SystemExit):
        main(["train", "emore_r100", *more, *run, "--resume"])
    said = capsys.readouterr().err
    assert "other people, or the same in another order" in said
    assert "start.names" in said


def test_a_path_is_a_text_or_a_list() -> None:
    for text, value in (("a", "a"), ("[a, b]", ["a", "b"]), ("'[a]'", ["a"]), ("null", None)):
        assert parse_layer(f"path: {text}", "x", "data.")["data.path"] == value
    with pytest.raises(ValueError, match=r"data\.path"):
        parse_layer("path: [a, {b: c}]", "x", "data.")
