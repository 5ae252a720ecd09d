"""`facescale data pairs`: lists, CFP's protocol, drawn pairs, and `.bin` to images and back."""

import pickle
import re
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from facescale.cli import main
from facescale.data.folder import ImageFolder
from facescale.data.pairlist import Images, load_pair_list, read_pair_list
from facescale.data.pairs import load_pairs
from facescale.datasets.drawpairs import draw_pairs
from records import jpeg
from shared_data import shared_data


def make(root: Path, *names: str) -> dict[str, bytes]:
    """JPEG files of 112 x 112 noise below `root`, by name."""
    random = np.random.default_rng(len(names))
    made = {name: jpeg(random) for name in names}
    for name, content in made.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return made


def as_arcface_torch_reads(path: Path) -> tuple[list[bytes], list[bool]]:
    """Its `load_bin`: the pickle, by the standard library."""
    with path.open("rb") as file:
        images, same = pickle.load(file, encoding="bytes")
    return images, same


def test_lfws_list_in_both_forms_of_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = make(tmp_path / "lfw", "Ada L/Ada L_0001.jpg", "Ada L/Ada L_0012.jpg", "Bo/Bo_0003.jpg")
    text = "1\t1\nAda L\t1\t12\nAda L\t12\tBo\t3\n"
    (tmp_path / "pairs.txt").write_text(text)
    output = tmp_path / "lfw.bin"
    main(
        [
            "data",
            "pairs",
            str(tmp_path / "pairs.txt"),
            str(output),
            "--images",
            str(tmp_path / "lfw"),
        ]
    )
    assert "2 pairs, 1 of one person, of 3 images" in capsys.readouterr().out
    ada1, ada12, bo = made.values()
    images, same = as_arcface_torch_reads(output)
    assert images == [ada1, ada12, ada12, bo]
    assert same == [True, False]
    ours = load_pairs(output)
    assert list(ours.images) == images
    assert ours.same.tolist() == same
    assert output.stat().st_size < 3 * len(ada1) + 3000  # an image in two pairs is stored once
    (tmp_path / "spaces.txt").write_text("Bo 3 3\n")
    assert read_pair_list(tmp_path / "spaces.txt", tmp_path / "lfw")[0].same


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1\t2\nA\t1\t2\n", "holds 1 pairs, but its first line says 4"),
        ("A\t1\n", "line 1: 'A\\\\t1' is neither"),
        ("A\tone\t2\n", "is neither"),
        ("", "holds no pairs"),
        ("A\t1\t2\n", "2 of 2 images do not exist, such as .*A_0001.jpg; give --images"),
    ],
)
def test_a_list_that_is_none_is_one_clear_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    (tmp_path / "pairs.txt").write_text(text)
    with pytest.raises(SystemExit):
        main(["data", "pairs", str(tmp_path / "pairs.txt"), str(tmp_path / "out.bin")])
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert re.search(message, said)
    assert not (tmp_path / "out.bin").exists()


def test_csv_with_or_without_heading_and_missing_images_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = make(tmp_path, "a/1.jpg", "a/2.jpg", "b/1.jpg")
    for heading in ("", "first,second,same\n"):
        text = f"{heading}a/1.jpg,a/2.png,1\na/1.jpg,b/1.jpg,False\na/1.jpg,gone.jpg,0\n"
        (tmp_path / "list.csv").write_text(text)
        command = ["data", "pairs", str(tmp_path / "list.csv"), str(tmp_path / "set.bin")]
        main([*command, "--skip_missing"])
        assert "1 of 3 pairs left out" in capsys.readouterr().out
        images, same = as_arcface_torch_reads(tmp_path / "set.bin")
        one, two, other = made.values()
        assert images == [one, two, one, other]
        assert same == [True, False]
    (tmp_path / "list.csv").write_text("a/1.jpg,a/2.jpg,1\na/1.jpg,a/2.jpg,maybe\n")
    with pytest.raises(SystemExit):
        main(command)
    assert "list.csv line 2" in capsys.readouterr().err


def test_cfps_protocol_compares_frontal_with_profile_photographs(tmp_path: Path) -> None:
    names = [f"{kind}/{n:02}.jpg" for kind in ("frontal", "profile") for n in (1, 2)]
    made = make(tmp_path / "Data" / "Images" / "001", *names)
    protocol = tmp_path / "Protocol"
    for letter, kind in (("F", "frontal"), ("P", "profile")):
        (protocol / "Split" / f"F{letter}" / "01").mkdir(parents=True)
        lines = [f"{n} ../Data/Images/001/{kind}/{n:02}.jpg" for n in (1, 2)]
        (protocol / f"Pair_list_{letter}.txt").write_text("\n".join(lines))
        (protocol / "Split" / f"F{letter}" / "01" / "same.txt").write_text("1,2\n2,1\n")
        (protocol / "Split" / f"F{letter}" / "01" / "diff.txt").write_text("2,2\n")
    front1, front2, side1, side2 = made.values()
    for source, options, wanted in (
        (tmp_path, [], [front1, side2, front2, side1, front2, side2]),
        (protocol, ["--protocol", "FF"], [front1, front2, front2, front1, front2, front2]),
        (protocol, ["--images", str(tmp_path / "Data" / "Images")], None),
    ):
        main(["data", "pairs", str(source), str(tmp_path / "cfp.bin"), *options])
        images, same = as_arcface_torch_reads(tmp_path / "cfp.bin")
        assert images == (wanted or [front1, side2, front2, side1, front2, side2])
        assert same == [True, True, False]


def test_drawn_pairs_have_other_people_in_each_fold(tmp_path: Path) -> None:
    names = [f"p{person:02}/{n}.jpg" for person in range(13) for n in range(1 + person % 4)]
    make(tmp_path / "people", *names)
    command = ["data", "pairs", str(tmp_path / "people"), str(tmp_path / "own.bin")]
    main([*command, "--pairs", "24", "--folds", "4", "--seed", "3"])
    pairs = load_pairs(tmp_path / "own.bin")
    dataset = ImageFolder(tmp_path / "people")
    person = {dataset.read(i).encoded: dataset.read(i).label for i in range(len(dataset))}
    people = [person[image] for image in pairs.images]
    firsts, seconds = people[0::2], people[1::2]
    assert [a == b for a, b in zip(firsts, seconds, strict=True)] == pairs.same.tolist()
    assert pairs.same.tolist() == ([True] * 3 + [False] * 3) * 4
    folds = [{*firsts[i : i + 6], *seconds[i : i + 6]} for i in range(0, 24, 6)]
    assert len(set.union(*folds)) == sum(map(len, folds))
    before = (tmp_path / "own.bin").read_bytes()
    main([*command, "--pairs", "24", "--folds", "4", "--seed", "3"])
    assert (tmp_path / "own.bin").read_bytes() == before
    main([*command, "--pairs", "24", "--folds", "4", "--seed", "4"])
    assert (tmp_path / "own.bin").read_bytes() != before


@given(st.lists(st.integers(1, 9), min_size=12, max_size=40), st.integers(0, 50))
def test_no_pair_is_drawn_twice_and_people_take_turns(sizes: list[int], seed: int) -> None:
    labels = np.repeat(np.arange(len(sizes)) * 3, sizes)
    labels = np.random.default_rng(seed).permutation(labels)
    try:
        pairs = draw_pairs(labels, 60, 3, seed)
    except ValueError as error:
        assert "make fewer folds than 3" in str(error)  # noqa: PT017
        if found := re.search(r"draw (\d+) at most", str(error)):
            most = int(found[1])
            assert len(draw_pairs(labels, most, 3, seed)) == most
            with pytest.raises(ValueError, match=f"draw {most} at most"):
                draw_pairs(labels, most + 6, 3, seed)
        return
    assert len({frozenset(pair[:2]) for pair in pairs}) == 60
    assert all(one != two for one, two, _ in pairs)
    assert all((labels[one] == labels[two]) == same for one, two, same in pairs)
    turns: dict[int, int] = defaultdict(int)
    for one, _, same in pairs[:20]:
        turns[labels[one]] += same
    counts = {label: int((labels == label).sum()) for label in turns if turns[label]}
    for label, number in counts.items():
        left = number * (number - 1) // 2 - turns[label]
        assert not left or turns[label] >= max(turns.values()) - 1


def test_all_pairs_can_be_drawn_and_too_many_are_refused() -> None:
    labels = np.array([0, 0, 0, 1])
    pairs = draw_pairs(labels, 6, 1, 0)
    assert {frozenset(pair[:2]) for pair in pairs} == {
        *(frozenset(pair) for pair in ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))),
    }
    with pytest.raises(ValueError, match=r"2 people are too few for 8 pairs in .*; draw 6 at most"):
        draw_pairs(labels, 8, 1, 0)
    with pytest.raises(ValueError, match=r"different people; make fewer folds than 2 \(--folds\)"):
        draw_pairs(labels, 4, 2, 0)
    with pytest.raises(ValueError, match=r"7 pairs cannot be shared by 1 folds.* multiple of 2"):
        draw_pairs(labels, 7, 1, 0)


def test_a_photograph_that_is_not_aligned_is_refused_or_stretched(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (130, 100)).save(tmp_path / "a.jpg")
    (tmp_path / "list.csv").write_text("a.jpg,a.jpg,1\n")
    command = ["data", "pairs", str(tmp_path / "list.csv"), str(tmp_path / "set.bin")]
    with pytest.raises(SystemExit):
        main(command)
    assert "so not an aligned face" in capsys.readouterr().err
    main([*command, "--stretch"])
    assert load_pairs(tmp_path / "set.bin").decode([0]).shape == (1, 112, 112, 3)


def test_an_image_is_found_under_another_suffix(tmp_path: Path) -> None:
    make(tmp_path, "001/01.jpg", "x/2.png.jpg")
    images = Images(tmp_path)
    assert images.find("../Data/Images/001/01.png") == tmp_path / "001" / "01.jpg"
    assert images.find("x/2.png") == tmp_path / "x" / "2.png.jpg"
    assert images.find("no/where.jpg") == tmp_path / "no/where.jpg"


def test_a_set_goes_to_images_and_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = list(make(tmp_path, "1", "2", "3").values())
    places = [0, 1, 2, 0, 1, 1]
    content = ([np.frombuffer(made[i], np.uint8) for i in places], [True, False, True])
    (tmp_path / "old.bin").write_bytes(pickle.dumps(content, protocol=2))
    main(["data", "pairs", str(tmp_path / "old.bin"), str(tmp_path / "out"), "--extract"])
    assert "3 images, and 3 pairs" in capsys.readouterr().out
    main(["data", "pairs", str(tmp_path / "out" / "pairs.csv"), str(tmp_path / "new.bin")])
    assert as_arcface_torch_reads(tmp_path / "new.bin") == ([made[i] for i in places], content[1])
    listed = load_pair_list(tmp_path / "out" / "pairs.csv")  # as `facescale verify` takes it
    assert (list(listed.images), listed.same.tolist()) == ([made[i] for i in places], content[1])
    with pytest.raises(SystemExit):
        main(["data", "pairs", str(tmp_path / "old.bin"), str(tmp_path / "out"), "--extract"])
    assert "is not an empty folder" in capsys.readouterr().err


def test_the_lfw_set_goes_to_images_and_back(tmp_path: Path) -> None:
    lfw = shared_data("lfw.bin")
    main(["data", "pairs", str(lfw), str(tmp_path / "lfw"), "--extract"])
    main(["data", "pairs", str(tmp_path / "lfw" / "pairs.csv"), str(tmp_path / "lfw.bin")])
    before, after = load_pairs(lfw), load_pairs(tmp_path / "lfw.bin")
    assert list(before.images) == list(after.images)
    assert (before.same == after.same).all()
    assert as_arcface_torch_reads(tmp_path / "lfw.bin")[0] == list(before.images)
