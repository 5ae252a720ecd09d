import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from facescale.data.dataset import open_dataset
from facescale.data.folder import ImageFolder
from facescale.data.images import decode, decode_into_, has_image_header, to_file
from facescale.data.recordio import RecordIO, write_recordio
from shared_data import shared_data

NOISE = np.random.default_rng(0).integers(0, 256, (112, 112, 3), np.uint8)
SMOOTH = np.asarray(Image.fromarray(NOISE).resize((4, 4)).resize((112, 112)))


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def pillow(encoded: bytes) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))


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


FORMATS: dict[str, tuple[str, dict[str, object]]] = {
    "JPEG 444": ("JPEG", {"subsampling": 0}),
    "JPEG 422": ("JPEG", {"subsampling": 1}),
    "JPEG 420": ("JPEG", {"subsampling": 2}),
    "JPEG progressive": ("JPEG", {"progressive": True}),
    "PNG": ("PNG", {}),
    "BMP": ("BMP", {}),
    "WEBP": ("WEBP", {"lossless": True}),
}


MODES = ("RGB", "L", "CMYK")


@pytest.mark.parametrize(
    ("name", "mode"),
    [(n, m) for n in FORMATS for m in MODES if m != "CMYK" or n.startswith("JPEG")],
)
def test_every_format_decodes_to_the_bits_of_pillow(name: str, mode: str) -> None:
    kind, options = FORMATS[name]
    encoded = encode(Image.fromarray(SMOOTH).convert(mode), kind, **options)
    np.testing.assert_array_equal(decode(encoded), pillow(encoded))


def test_real_faces_decode_to_the_bits_of_pillow() -> None:
    faces = RecordIO(shared_data("cfp324"))
    for index in range(0, len(faces), 50):
        encoded = faces.read(index).encoded
        assert isinstance(encoded, bytes)
        np.testing.assert_array_equal(decode(encoded), pillow(encoded))


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_another_size_is_resized_as_pillow_does(kind: str) -> None:
    encoded = encode(Image.fromarray(SMOOTH).crop((0, 0, 90, 70)), kind)
    resized = Image.fromarray(pillow(encoded)).resize((112, 112), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(decode(encoded), np.asarray(resized))
    assert decode(encoded, 64).shape == (64, 64, 3)


def test_a_jpeg_is_decoded_into_its_row_of_the_batch_and_nowhere_else() -> None:
    encoded = encode(Image.fromarray(SMOOTH), "JPEG")
    batch = np.zeros((3, 112, 112, 3), np.uint8)
    decode_into_(batch[1], encoded)
    np.testing.assert_array_equal(batch[1], pillow(encoded))
    assert not batch[[0, 2]].any()


def test_pixels_pass_unchanged_and_others_are_refused() -> None:
    np.testing.assert_array_equal(decode(NOISE), NOISE)
    np.testing.assert_array_equal(decode(to_file(NOISE)), NOISE)
    wrong: Any
    for wrong in (NOISE[:, :, 0], NOISE.astype(np.float32), NOISE[:, :, :1]):
        with pytest.raises(ValueError, match=r"pixels must be uint8 \(height, width, 3\), got"):
            decode(wrong)


def test_a_jpeg_with_a_flaw_that_can_be_mended_is_read_as_pillow_reads_it() -> None:
    encoded = bytearray(encode(Image.fromarray(NOISE), "JPEG"))
    encoded[3000:3004] = b"\xff\xff\x00\x13"
    np.testing.assert_array_equal(decode(bytes(encoded)), pillow(bytes(encoded)))


@settings(deadline=None, max_examples=200)
@given(
    kind=st.sampled_from(["JPEG", "PNG", "BMP", "WEBP", "TIFF", "PPM"]),
    cut=st.integers(0, 10_000),
    place=st.integers(0, 10_000),
    byte=st.integers(0, 255),
)
def test_a_damaged_image_is_decoded_or_refused_and_never_worse(
    kind: str, cut: int, place: int, byte: int
) -> None:
    encoded = bytearray(encode(Image.fromarray(SMOOTH), kind))
    encoded[place % len(encoded)] = byte
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of what it then refuses or mends
        try:
            assert decode(bytes(encoded[: len(encoded) - cut])).shape == (112, 112, 3)
        except ValueError as error:
            assert "not a readable image" in str(error)  # noqa: PT017


@pytest.mark.parametrize("encoded", [b"", b"hello", encode(Image.fromarray(NOISE), "PNG")[:20]])
def test_what_is_no_image_is_refused(encoded: bytes) -> None:
    assert not has_image_header(encoded)
    with pytest.raises(ValueError, match="not a readable image"):
        decode(encoded)


def test_a_header_tells_an_image() -> None:
    for kind in ("JPEG", "PNG"):
        assert has_image_header(encode(Image.fromarray(NOISE), kind))
