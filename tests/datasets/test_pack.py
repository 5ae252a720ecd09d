"""Packing: what is written is what other readers read, whatever happens on the way."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from damage import saved
from facescale.cli import main
from facescale.data.dataset import found_in, open_dataset
from facescale.data.recordio import RecordIO
from facescale.datasets import convert as conversion
from facescale.datasets.convert import Conversion, Options, convert
from facescale.datasets.pack import Prepare
from facescale.datasets.recordio import RecordWriter
from plain_reader import read_set
from records import jpeg, ycck


def encoded(kind: str, size: tuple[int, int] = (112, 112), **options: object) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


@pytest.fixture
def people(tmp_path: Path) -> Path:
    """Three people with 3, 5 and 2 images, one of them a PNG with the magic number in it."""
    random = np.random.default_rng(0)
    root = tmp_path / "people"
    for name, count in (("ann", 3), ("bob", 5), ("Zoë", 2)):
        (root / name).mkdir(parents=True)
        for number in range(count):
            (root / name / f"{number}.jpg").write_bytes(jpeg(random))
    padding = 8 - len(jpeg(random)) % 4
    with (root / "ann" / "0.jpg").open("ab") as file:
        file.write(bytes(padding) + bytes.fromhex("0a23d7ce") * 2)
    (root / "bob" / "0.jpg").unlink()
    (root / "bob" / "0.png").write_bytes(encoded("PNG"))
    return root


def images_of(root: Path) -> list[tuple[int, bytes]]:
    names = sorted(path.name for path in root.iterdir())
    return [
        (label, path.read_bytes())
        for label, name in enumerate(names)
        for path in sorted((root / name).iterdir())
    ]


@pytest.mark.parametrize("order", ["kept", "shuffled"])
def test_an_independent_reader_reads_every_image_of_every_person(
    people: Path, tmp_path: Path, order: str
) -> None:
    main(["data", "pack", str(people), str(tmp_path / "set"), "--order", order, "--seed", "3"])
    images, ranges = read_set(tmp_path / "set")
    assert ranges == [(1, 3), (3, 6), (6, 11)]
    assert [label for label, _ in images] == [0] * 2 + [1] * 3 + [2] * 5
    assert sorted(images) == sorted(images_of(people))
    if order == "kept":
        assert images == images_of(people)
    assert (tmp_path / "set" / "property").read_text() == "3,112,112\n"
    assert (tmp_path / "set" / "names.txt").read_text() == "Zoë\nann\nbob\n"
    assert not (tmp_path / "set.partial").exists()


def test_a_shuffled_set_lies_shuffled_in_its_file_by_the_seed(people: Path, tmp_path: Path) -> None:
    offsets = []
    for number, seed in enumerate((0, 0, 1)):
        out = tmp_path / f"{number}"
        convert(open_dataset(people), out, Options(order="shuffled", seed=seed))
        offsets.append((out / "train.idx").read_text())
    assert offsets[0] == offsets[1] != offsets[2]


def test_a_packed_folder_keeps_its_people_for_a_resume(people: Path, tmp_path: Path) -> None:
    convert(open_dataset(people), tmp_path / "set")
    assert found_in(open_dataset(tmp_path / "set")) == found_in(open_dataset(people))
    assert open_dataset(tmp_path / "set").class_names == ["Zoë", "ann", "bob"]  # type: ignore[attr-defined]


def test_other_images_are_refused_by_name_or_resized_by_an_option(
    people: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (people / "bob" / "1.jpg").write_bytes(encoded("JPEG", (250, 200)))
    out = str(tmp_path / "set")
    with pytest.raises(SystemExit):
        main(["data", "pack", str(people), out])
    said = capsys.readouterr().err
    assert "bob/1.jpg: a 250 x 200 image" in said
    assert "--resize" in said
    main(["data", "pack", str(people), str(tmp_path / "other"), "--resize", "stretch"])
    images, _ = read_set(tmp_path / "other")
    assert sum(image in dict(map(reversed, images_of(people))) for _, image in images) == 9  # type: ignore[arg-type]
    for _, image in images:
        assert Image.open(io.BytesIO(image)).size == (112, 112)


def test_unusable_images_are_listed_and_passed_over_on_demand(
    people: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (people / "bob" / "1.jpg").write_bytes(encoded("JPEG", (250, 200)))
    (people / "ann" / "1.jpg").write_bytes(b"no image")
    main(["data", "pack", str(people), str(tmp_path / "set"), "--on-error", "skip"])
    listed = (tmp_path / "set" / "skipped.txt").read_text().splitlines()
    assert [line.split("\t")[0][-9:] for line in listed] == ["ann/1.jpg", "bob/1.jpg"]
    assert read_set(tmp_path / "set")[1] == [(1, 3), (3, 5), (5, 9)]
    assert "2 unusable images were passed over" in capsys.readouterr().out


def test_what_stopped_at_an_unusable_image_goes_on_past_it(people: Path, tmp_path: Path) -> None:
    for name in ("bob/1\n.jpg", "bob/2\r.jpg"):
        (people / name).write_bytes(b"no image")
    source, stopping = open_dataset(people), Options(prepare=Prepare())
    with pytest.raises(ValueError, match="on-error skip"):
        convert(source, tmp_path / "set", stopping)
    skipping = replace(stopping, on_error="skip")
    assert convert(source, tmp_path / "set", skipping).written == 10
    assert len((tmp_path / "set" / "skipped.txt").read_text().splitlines()) == 2


def test_a_set_of_an_earlier_version_is_known_again(people: Path, tmp_path: Path) -> None:
    source = open_dataset(people)
    convert(source, tmp_path / "set")
    journal = tmp_path / "set" / "made.json"
    values = json.loads(journal.read_bytes())
    values["plan"]["on_error"] = "stop"
    journal.write_text(json.dumps(values))
    assert convert(source, tmp_path / "set").written == 10


@pytest.mark.parametrize(
    ("image", "plain"),
    [
        (encoded("JPEG"), True),
        (encoded("PNG"), True),
        (encoded("WEBP"), False),
        (encoded("BMP"), False),
        (ycck(saved(Image.new("CMYK", (112, 112)), "JPEG")), False),
        (encoded("JPEG", (112, 111)), False),
        (encoded("PNG", (111, 112)), False),
    ],
)
def test_only_plain_images_of_the_size_pass_unchanged(image: bytes, plain: bool) -> None:
    if plain:
        assert Prepare()(image) == image
        return
    with pytest.raises(ValueError, match="no plain JPEG or PNG"):
        Prepare()(image)
    for resize in ("stretch", "crop"):
        for encoding in ("jpeg", "png"):
            assert Image.open(io.BytesIO(Prepare(resize, encoding)(image))).size == (112, 112)


def test_a_turned_photograph_is_not_plain_and_a_crop_is_central() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    with pytest.raises(ValueError, match="no plain JPEG"):
        Prepare()(encoded("JPEG", exif=exif))
    pixels = np.zeros((112, 312, 3), np.uint8)
    pixels[:, 100:212] = 255
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    fitted = Image.open(io.BytesIO(Prepare("crop", "png")(file.getvalue())))
    assert np.asarray(fitted).min() == 255


def test_a_killed_pack_goes_on_and_ends_in_the_same_files(tmp_path: Path) -> None:
    image = jpeg(np.random.default_rng(0))
    for person in range(20):
        (tmp_path / "people" / f"{person:03d}").mkdir(parents=True)
        for number in range(60):
            path = tmp_path / "people" / f"{person:03d}" / f"{number:03d}.jpg"
            path.write_bytes(image + f"{person} {number}".encode())
    code = (
        "import sys, time\n"
        "from facescale.cli import main\n"
        "from facescale.datasets import convert\n"
        "convert.MARK_S = 0.0\n"
        "add = convert.RecordWriter.add\n"
        "convert.RecordWriter.add = lambda *args: (time.sleep(0.0005), add(*args))\n"
        "main(['data', 'pack', *sys.argv[1:]])"
    )
    sources = str(Path(conversion.__file__).parents[2])
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "people"), str(tmp_path / "set")],
        env={**os.environ, "PYTHONPATH": sources},
        stderr=subprocess.DEVNULL,
    )
    journal = tmp_path / "set.partial" / "made.json"
    while not journal.exists() or json.loads(journal.read_bytes())["read"] < 150:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "set").exists()
    dataset = open_dataset(tmp_path / "people")
    work = Conversion(dataset, tmp_path / "set", Options(prepare=Prepare()))
    assert 0 < work.remaining <= 1050
    work.close()
    main(["data", "pack", str(tmp_path / "people"), str(tmp_path / "set")])
    convert(dataset, tmp_path / "whole", Options(prepare=Prepare()))
    for name in ("train.rec", "train.idx", "property", "names.txt"):
        assert (tmp_path / "set" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_folder_is_neither_overwritten_nor_continued_with_other_options(
    people: Path, tmp_path: Path
) -> None:
    dataset = open_dataset(people)
    convert(dataset, tmp_path / "set")
    assert convert(dataset, tmp_path / "set").written == 10  # again: nothing to do
    with pytest.raises(FileExistsError, match="exists already"):
        convert(dataset, tmp_path / "set", Options(order="shuffled"))
    work = Conversion(dataset, tmp_path / "new")
    with pytest.raises(ValueError, match="another process writes to"):
        Conversion(dataset, tmp_path / "new")
    work.close()
    with pytest.raises(ValueError, match="another source or with other options"):
        Conversion(dataset, tmp_path / "new", Options(order="shuffled"))
    (tmp_path / "new.partial" / "made.json").write_text("{}")
    with pytest.raises(ValueError, match="damaged"):
        Conversion(dataset, tmp_path / "new")


def test_a_set_that_reads_back_otherwise_is_not_finished(people: Path, tmp_path: Path) -> None:
    work = Conversion(open_dataset(people), tmp_path / "set")
    list(work.write())
    path = tmp_path / "set.partial" / "train.rec"
    data = bytearray(path.read_bytes())
    data[2000] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match="not the same"):
        list(work.verify())
    work.close()
    assert not (tmp_path / "set").exists()


def test_labels_beyond_float32_are_refused_or_kept_exactly(tmp_path: Path) -> None:
    num_classes = 2**24 + 5
    with pytest.raises(ValueError, match="--labels exact"):
        RecordWriter(tmp_path, num_classes)
    writer = RecordWriter(tmp_path, num_classes, labels="exact")
    labels = [2**24 + 3, 0, 2**24 + 1, 2**24, 7]
    for label in labels:
        writer.add(b"image %d" % label, label)
    writer.finish()
    (tmp_path / "property").write_text(f"{num_classes},112,112\n")
    faces = RecordIO(tmp_path)
    assert faces.num_classes == num_classes
    assert [faces.read(index) for index in range(5)] == [
        (b"image %d" % label, label) for label in sorted(labels)
    ]
    assert faces.found().num_empty == num_classes - 5
    (tmp_path / "property").write_text("9,112,112\n")
    assert str(RecordIO(tmp_path).found()) == "5 images of 9 people, 7 of them without images"
    (tmp_path / "property").write_text(f"{num_classes},112,112\n")
    images, _ = read_set(tmp_path)  # others see the nearest float32
    assert [label for label, _ in images] == [0, 7, 2**24, 2**24, 2**24 + 4]
    other = tmp_path / "train.labels"
    content = bytearray(other.read_bytes())
    content[-1] ^= 1
    other.write_bytes(content)
    with pytest.raises(ValueError, match=r"train\.labels is damaged"):
        RecordIO(tmp_path)
    other.unlink()
    with pytest.raises(ValueError, match="float32 labels are exact up to"):
        RecordIO(tmp_path)
