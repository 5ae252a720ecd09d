from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from facescale.data.dataset import open_dataset
from facescale.data.folder import ImageFolder
from facescale.data.images import decode, to_file
from facescale.data.recordio import RecordIO, write_recordio
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
    with pytest.raises(ValueError, match="has no folders; put the images in one folder per"):
        ImageFolder(tmp_path)


def test_the_stated_size_is_checked(people: Path) -> None:
    assert len(open_dataset(people, num_classes=3, num_images=4)) == 4
    with pytest.raises(ValueError, match="num_classes is 3, not 5 as stated; correct or leave"):
        open_dataset(people, num_classes=5)
    with pytest.raises(ValueError, match="num_images is 4, not 5 as stated"):
        open_dataset(people, num_images=5)


def test_a_folder_becomes_a_recordio_set(people: Path, tmp_path: Path) -> None:
    faces = ImageFolder(people)
    write_recordio(tmp_path / "rec", map(faces.read, range(len(faces))), faces.num_classes)
    records = RecordIO(tmp_path / "rec")
    assert [records.read(i) for i in range(4)] == [faces.read(i) for i in range(4)]
