import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from facescale.data.dataset import found_in, open_dataset
from facescale.data.folder import ImageFolder
from facescale.data.found import Found
from facescale.data.images import decode, to_file
from facescale.data.recordio import RecordIO
from facescale.data.synthetic import Synthetic
from facescale.datasets.recordio import write_recordio
from shared_data import shared_data

NOISE = np.random.default_rng(0).integers(0, 256, (112, 112, 3), np.uint8)
SMOOTH = np.asarray(Image.fromarray(NOISE).resize((4, 4)).resize((112, 112)))


@pytest.fixture
def people(tmp_path: Path) -> Path:
    for name in ("bob/2.PNG", "bob/10.png", "alice/x.jpg", "carol/y.webp"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(to_file(SMOOTH))
    (tmp_path / "README").write_text("not a person")
    (tmp_path / ".cache").mkdir()
    (tmp_path / "bob" / "Thumbs.db").write_text("not an image")
    return tmp_path


def test_labels_count_the_folders_sorted_by_name(people: Path) -> None:
    faces = open_dataset(people)
    assert isinstance(faces, ImageFolder)
    assert faces.class_names == ["alice", "bob", "carol"]
    assert (len(faces), faces.num_classes) == (4, 3)
    assert [faces.read(index).label for index in range(4)] == [0, 1, 1, 2]
    assert faces.describe(1) == str(people / "bob" / "10.png")
    np.testing.assert_array_equal(decode(faces.read(1).encoded), SMOOTH)


def test_photographs_of_people_are_read() -> None:
    faces = open_dataset(shared_data("photos"))
    files = sorted(shared_data("photos").glob("*/*.jpg"))
    assert [faces.describe(index) for index in range(len(faces))] == [str(path) for path in files]
    image = Image.open(files[0]).resize((112, 112), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(decode(faces.read(0).encoded), np.asarray(image))


def test_a_person_without_images_is_named(people: Path) -> None:
    (people / "dave").mkdir()
    with pytest.raises(ValueError, match=r"dave has no images .*; remove it, or put"):
        ImageFolder(people)


def test_what_is_no_data_set_gets_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere does not exist; give a folder with"):
        open_dataset(tmp_path / "nowhere")
    (tmp_path / "face.jpg").write_bytes(to_file(NOISE))
    for path in (tmp_path, tmp_path / "face.jpg"):
        with pytest.raises(ValueError, match=r"is not a data set; give a folder with train\.rec"):
            open_dataset(path)
    with pytest.raises(ValueError, match="has no folders of images; put the images in one"):
        ImageFolder(tmp_path)


def test_the_stated_size_is_checked(people: Path) -> None:
    assert len(open_dataset(people, num_classes=3, num_images=4)) == 4
    with pytest.raises(ValueError, match="num_classes is 3, not 5 as stated; correct or leave"):
        open_dataset(people, num_classes=5)
    with pytest.raises(ValueError, match="num_images is 4, not 5 as stated"):
        open_dataset(people, num_images=5)


def test_hidden_files_are_passed_over(people: Path) -> None:
    """As macOS and its archives leave them beside every file."""
    before = ImageFolder(people)
    for name in ("bob/._2.png", "bob/.DS_Store", "alice/._x.jpg", "._alice"):
        (people / name).write_bytes(b"\0\5\26\7")
    after = ImageFolder(people)
    assert [after.describe(i) for i in range(len(after))] == [
        before.describe(i) for i in range(len(before))
    ]


def nested(people: Path, tmp_path: Path, *parts: str) -> Path:
    """The people's folders inside other folders."""
    outer = tmp_path.joinpath("nested", *parts)
    outer.mkdir(parents=True)
    for person in ("alice", "bob", "carol"):
        (people / person).rename(outer / person)
    return tmp_path / "nested"


def test_outer_folders_are_entered(people: Path, tmp_path: Path) -> None:
    faces = open_dataset(nested(people, tmp_path, "imgs", "aligned"))
    assert isinstance(faces, ImageFolder)
    assert faces.class_names == ["alice", "bob", "carol"]
    assert faces.describe(0) == str(tmp_path / "nested" / "imgs" / "aligned" / "alice" / "x.jpg")


def test_the_two_levels_of_webface260m_are_read(tmp_path: Path) -> None:
    for name in ("1/1_0/a.jpg", "0/0_1/b.jpg", "0/0_1/c.jpg", "0/0_0/d.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(to_file(SMOOTH))
    faces = open_dataset(tmp_path)
    assert isinstance(faces, ImageFolder)
    assert faces.class_names == ["0/0_0", "0/0_1", "1/1_0"]
    assert [faces.read(index).label for index in range(4)] == [0, 1, 1, 2]
    assert faces.describe(1) == str(tmp_path / "0" / "0_1" / "b.jpg")


def test_folders_of_folders_that_may_be_people_or_parts_of_people_are_refused(
    tmp_path: Path,
) -> None:
    """One person per video would be silently wrong."""
    for name in ("alice/video1/a.jpg", "alice/video2/b.jpg", "bob/video1/c.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(to_file(SMOOTH))
    with pytest.raises(ValueError, match=r"such as alice/video1, and it is not plain which are"):
        open_dataset(tmp_path)


def test_a_recordio_set_in_an_outer_folder_is_found(tmp_path: Path) -> None:
    write_recordio(tmp_path / "faces_emore", [(NOISE, 0)], 1)
    faces = open_dataset(tmp_path)
    assert isinstance(faces, RecordIO)
    assert faces.path == tmp_path / "faces_emore" / "train.rec"
    write_recordio(tmp_path / "glint360k", [(NOISE, 0)], 1)
    with pytest.raises(ValueError, match=r"holds several data sets; give one of .*emore, .*glint"):
        open_dataset(tmp_path)


def test_links_that_lead_nowhere_are_named(people: Path) -> None:
    (people / "bob" / "3.png").symlink_to(people / "bob" / "2.PNG")
    assert len(ImageFolder(people)) == 5
    (people / "bob" / "4.png").symlink_to("gone.png")
    with pytest.raises(ValueError, match=r"4\.png is a link to nothing; .* restore gone\.png"):
        ImageFolder(people)
    (people / "gone").symlink_to(people / "nowhere")
    with pytest.raises(FileNotFoundError, match="gone is a symbolic link whose target"):
        open_dataset(people / "gone")


def test_names_may_have_any_bytes(tmp_path: Path) -> None:
    person = tmp_path / os.fsdecode(b"M\xfcller [")
    person.mkdir()
    (person / os.fsdecode(b"]\xff.png")).write_bytes(to_file(SMOOTH))
    faces = ImageFolder(tmp_path)
    assert faces.describe(0) == f"{tmp_path}/M\\xfcller [/]\\xff.png"
    faces.describe(0).encode()  # can be printed
    np.testing.assert_array_equal(decode(faces.read(0).encoded), SMOOTH)


def test_what_was_found_tells_people_apart_by_name_and_order(people: Path) -> None:
    found = found_in(ImageFolder(people))
    assert str(found) == "4 images of 3 people"
    (people / "alice" / "more.jpg").write_bytes(b"")
    more = found_in(ImageFolder(people))
    assert (more.num_images, more.people) == (5, found.people)  # the same people
    (people / "alice").rename(people / "zoe")
    assert found_in(ImageFolder(people)).people != found.people
    assert found_in(Synthetic(3, 4)) == (4, 3, None, found_in(Synthetic(3, 9)).people)
    assert found_in(Synthetic(4, 4)).people != found_in(Synthetic(3, 4)).people
    assert str(found_in(Synthetic(1000, 12345))) == "12,345 images of 1,000 people"


def test_a_folder_becomes_a_recordio_set(people: Path, tmp_path: Path) -> None:
    faces = ImageFolder(people)
    write_recordio(tmp_path / "rec", map(faces.read, range(len(faces))), faces.num_classes)
    records = RecordIO(tmp_path / "rec")
    assert [records.read(i) for i in range(4)] == [faces.read(i) for i in range(4)]


def test_what_makes_a_loss_meaningless_is_told(people: Path) -> None:
    assert Found(4, 3, 0, "").warnings() == []
    assert Found(10**7, 10**6, None, "").warnings() == []
    assert "one person only" in Found(4, 1, 0, "").warnings()[0]
    assert "images of one person only" in Found(1, 3, None, "").warnings()[0]
    only, empty = Found(4, 3, 2, "").warnings()
    assert "images of one person only" in only
    assert "2 of 3 classes have no images" in empty


def test_a_file_that_is_larger_than_any_image_is_not_read(people: Path) -> None:
    os.truncate(people / "alice" / "x.jpg", 2**26 + 1)
    with pytest.raises(ValueError, match=r"x\.jpg: 67108865 bytes are more than 67108864"):
        ImageFolder(people).read(0)


def test_what_is_no_file_is_no_image(people: Path) -> None:
    (people / "bob" / "folder.jpg").mkdir()
    os.mkfifo(people / "bob" / "pipe.jpg")  # reading it would wait for ever
    assert len(ImageFolder(people)) == 4
    os.mkfifo(people / "train.rec")
    with pytest.raises(ValueError, match=r"train\.rec is not a file"):
        open_dataset(people)
