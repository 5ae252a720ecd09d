"""Converting: every format to every other, with the same images of the same people."""

import json
import shutil
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from confined import file_size_limit
from facescale.cli import main
from facescale.data.dataset import Dataset, found_in, open_dataset
from facescale.data.images import to_file
from facescale.datasets.convert import Conversion, Options, convert
from facescale.datasets.parts import check_folders
from facescale.datasets.recordio import write_recordio
from facescale.datasets.stream import Names
from records import jpeg
from shared_data import shared_data

FORMATS = ("recordio", "ofrecord", "tar", "folder")


def content(dataset: Dataset) -> Counter[tuple[str, bytes]]:
    names = Names(dataset)
    samples = (dataset.read(index) for index in range(len(dataset)))
    return Counter((names[label], to_file(image)) for image, label in samples)


@pytest.fixture
def people(tmp_path: Path) -> Dataset:
    random = np.random.default_rng(0)
    for name, count in (("ann", 3), ("bob", 5), ("Zoë", 2)):
        (tmp_path / "people" / name).mkdir(parents=True)
        for number in range(count):
            (tmp_path / "people" / name / f"{number}.jpg").write_bytes(jpeg(random))
    return open_dataset(tmp_path / "people")


@pytest.mark.parametrize("order", ["kept", "shuffled"])
def test_every_format_becomes_every_other_one(people: Dataset, tmp_path: Path, order: str) -> None:
    for first in FORMATS:
        options = Options(to=first, part_size=4, order=order, seed=2)  # type: ignore[arg-type]
        made = convert(people, tmp_path / first, options)
        one = open_dataset(tmp_path / first)
        assert content(one) == content(people)
        assert found_in(one) == found_in(people)
        assert made.written == 10
        for second in FORMATS:
            out = tmp_path / f"{first}-{second}"
            assert convert(one, out, Options(to=second, part_size=3)).digest == made.digest
            assert content(open_dataset(out)) == content(people)


@pytest.mark.parametrize("to", FORMATS)
def test_a_set_without_names_keeps_its_labels(tmp_path: Path, to: str) -> None:
    samples = [(b"\xff\xd8\xff image %d" % n, label) for n, label in enumerate((0, 0, 2, 2, 5))]
    write_recordio(tmp_path / "set", samples, 7)
    source = open_dataset(tmp_path / "set")
    convert(source, tmp_path / "out", Options(to=to))
    made = open_dataset(tmp_path / "out")
    assert content(made) == content(source)
    if to == "folder":
        assert made.class_names == ["00000000", "00000002", "00000005"]  # type: ignore[attr-defined]
    else:
        assert found_in(made) == found_in(source)
        assert found_in(made).num_empty == 4


@pytest.mark.parametrize("to", FORMATS)
def test_the_sets_that_other_systems_wrote_are_converted(tmp_path: Path, to: str) -> None:
    for name in ("golden/mxnet_rec", "golden/oneflow_ofrecord"):
        source = open_dataset(shared_data(name))
        out = tmp_path / name.replace("/", "-")
        main(["data", "convert", str(source.path), str(out), "--to", to])  # type: ignore[attr-defined]
        assert content(open_dataset(out)) == content(source)


@pytest.mark.parametrize("to", FORMATS)
def test_work_goes_on_from_its_last_mark(people: Dataset, tmp_path: Path, to: str) -> None:
    class Fails:
        num_classes, class_names = people.num_classes, ["Zoë", "ann", "bob"]
        limit = 0

        def __len__(self) -> int:
            return len(people)

        def read(self, index: int) -> object:
            if index >= self.limit:
                raise OSError("the disk is away")
            return people.read(index)

        def describe(self, index: int) -> str:
            return people.describe(index)

        def found(self) -> object:
            return found_in(people)

    source = Fails()
    options = Options(to=to, part_size=4, threads=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("facescale.datasets.convert.CHUNK", 2)
        patch.setattr("facescale.datasets.convert.MARK_S", -1.0)
        for source.limit in (4, 8, 9):
            work = Conversion(source, tmp_path / "set", options)  # type: ignore[arg-type]
            with pytest.raises(ValueError, match="the disk is away"):
                list(work.write())
            work.close()
            for path in (tmp_path / "set.partial").rglob("*"):  # what a killed process left behind
                if path.is_file() and path.name in ("train.rec", ".entries", "part-00001"):
                    with path.open("ab") as file:
                        file.write(b"half a record")
        source.limit = 10
        work = Conversion(source, tmp_path / "set", options)  # type: ignore[arg-type]
        assert work.remaining == 2
        list(work.write())
        list(work.verify())
        work.close()
    assert content(open_dataset(tmp_path / "set")) == content(people)


@pytest.mark.parametrize("to", FORMATS)
def test_work_that_ended_before_it_was_verified_goes_on(
    people: Dataset, tmp_path: Path, to: str
) -> None:
    work = Conversion(people, tmp_path / "set", Options(to=to))
    list(work.write())
    work.close()
    assert convert(people, tmp_path / "set", Options(to=to)).written == 10
    assert content(open_dataset(tmp_path / "set")) == content(people)
    assert not (tmp_path / "set" / ".entries").exists()


def test_a_complete_set_that_has_no_name_yet_gets_it(
    people: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Path, target: Path) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", fail)
        with pytest.raises(OSError, match="set could not be written"):
            convert(people, tmp_path / "set")
    assert convert(people, tmp_path / "set").complete
    assert content(open_dataset(tmp_path / "set")) == content(people)
    assert not (tmp_path / "set.partial").exists()


@pytest.mark.parametrize("exists", [True, False])
def test_a_link_to_a_folder_is_followed(people: Dataset, tmp_path: Path, exists: bool) -> None:
    if exists:
        (tmp_path / "disk" / "set").mkdir(parents=True)
    (tmp_path / "set").symlink_to(tmp_path / "disk" / "set")
    convert(people, tmp_path / "set")
    assert (tmp_path / "set").is_symlink()
    assert content(open_dataset(tmp_path / "disk" / "set")) == content(people)


def test_our_shards_are_plain_archives_of_samples(people: Dataset, tmp_path: Path) -> None:
    convert(people, tmp_path / "set", Options(to="tar", part_size=4))
    shards = sorted((tmp_path / "set").glob("*.tar"))
    assert [shard.name for shard in shards] == [f"shard-00000{number}.tar" for number in range(3)]
    found = []
    for shard in shards:
        with tarfile.open(shard) as archive:
            members = archive.getmembers()
            for image, label in zip(members[::2], members[1::2], strict=True):
                assert label.name == image.name.replace(".jpg", ".cls")
                pixels, number = archive.extractfile(image), archive.extractfile(label)
                assert pixels is not None
                assert number is not None
                found.append((pixels.read(), int(number.read())))
    assert found == [people.read(index) for index in range(10)]


def test_names_that_lead_out_of_a_folder_are_refused(tmp_path: Path) -> None:
    for name in ("../a", "/a", ".a", "a/b", "a/../a_b", "", "x" * 300):
        folder = tmp_path / "set"
        write_recordio(folder, [(b"\xff\xd8\xff", 0)], 1)
        (folder / "names.txt").write_text(f"{name}\n")
        source = open_dataset(folder)
        work = Conversion(source, tmp_path / "out", Options(to="folder"))
        with pytest.raises(ValueError, match="cannot be a folder"):
            list(work.write())
        work.close()
        shutil.rmtree(tmp_path / "out.partial")
        assert not (tmp_path / "a").exists()


def test_a_journal_says_what_was_made(people: Dataset, tmp_path: Path) -> None:
    convert(people, tmp_path / "set", Options(to="tar"))
    journal = json.loads((tmp_path / "set" / "made.json").read_text())
    assert journal["complete"] is True
    assert journal["written"] == journal["plan"]["images"] == 10


def test_memory_stays_bounded_however_many_images_there_are(tmp_path: Path) -> None:
    """Images are not gathered: at most a few chunks of them exist at a time."""
    alive: list[int] = [0, 0]

    class Counted(bytes):
        def __new__(cls, data: bytes) -> "Counted":
            alive[0] += 1
            alive[1] = max(alive)
            return super().__new__(cls, data)

        def __del__(self) -> None:
            alive[0] -= 1

    class Many:
        num_classes = 10

        def __len__(self) -> int:
            return 5000

        def read(self, index: int) -> object:
            from facescale.data.images import Sample

            return Sample(Counted(b"\xff\xd8\xff%d" % index), index % 10)

        def describe(self, index: int) -> str:
            return f"image {index}"

    convert(Many(), tmp_path / "set", Options(to="tar"))  # type: ignore[arg-type]
    assert alive[1] < 1000


@pytest.mark.parametrize("to", ["recordio", "ofrecord", "tar"])
def test_a_file_that_cannot_grow_is_named(people: Dataset, tmp_path: Path, to: str) -> None:
    made = {"recordio": "train.rec", "ofrecord": "part-00000", "tar": "shard-000000.tar"}[to]
    with (
        file_size_limit(20_000),
        pytest.raises(OSError, match=f"new.partial/{made} could not be written: File too large"),
    ):
        convert(people, tmp_path / "new", Options(to=to))


def test_a_name_that_two_people_have_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"2 people are called 'ann', and would share a folder"):
        check_folders(["bob", "ann", "ann"], 3)
