import io
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from facescale.data.images import decode
from facescale.data.pairs import PairSet, load_pairs, save_pairs
from shared_data import shared_data

NOISE = np.random.default_rng(0).integers(0, 256, (4, 112, 112, 3), np.uint8)


def jpeg(pixels: np.ndarray[Any, Any]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


IMAGES = [jpeg(pixels) for pixels in NOISE]


def written(folder: Path, content: object, protocol: int = 4) -> Path:
    path = folder / "pairs.bin"
    path.write_bytes(pickle.dumps(content, protocol))
    return path


def test_lfw_is_read() -> None:
    lfw = load_pairs(shared_data("lfw.bin"))
    assert lfw.name == "lfw"
    assert len(lfw.images) == 12_000
    # LFW's ten folds of 300 pairs of one person, then 300 of two.
    np.testing.assert_array_equal(lfw.same, np.tile(np.repeat([True, False], 300), 10))
    encoded = lfw.images[4321]
    assert isinstance(encoded, bytes)
    truth = np.asarray(Image.open(io.BytesIO(encoded)))
    np.testing.assert_array_equal(lfw.decode([4320, 4321])[1], truth)


def test_repeated_images_are_found() -> None:
    lfw = load_pairs(shared_data("lfw.bin"))
    first, place = lfw.distinct()
    assert len(first) < 0.7 * 12_000
    assert all(lfw.images[first[place[i]]] == lfw.images[i] for i in range(12_000))
    mixed = PairSet("mixed", [NOISE[1], IMAGES[0], NOISE[1], IMAGES[0]], np.array([False, True]))
    assert mixed.distinct()[0] == [0, 1]
    assert mixed.distinct()[1].tolist() == [0, 1, 0, 1]


def test_a_set_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    pairs = PairSet("mixed", [IMAGES[0], NOISE[1], IMAGES[2], NOISE[3]], np.array([True, False]))
    save_pairs(tmp_path / "mixed.bin", pairs)
    again = load_pairs(tmp_path / "mixed.bin")
    assert again.name == "mixed"
    np.testing.assert_array_equal(again.same, pairs.same)
    np.testing.assert_array_equal(again.decode(range(4)), pairs.decode(range(4)))
    # as InsightFace reads it
    images, same = pickle.loads((tmp_path / "mixed.bin").read_bytes(), encoding="bytes")
    assert images[0] == IMAGES[0]
    assert same == [True, False]


@pytest.mark.parametrize("protocol", range(6))
def test_pickles_of_every_age_are_read(tmp_path: Path, protocol: int) -> None:
    arrays = [np.frombuffer(image, np.uint8) for image in IMAGES]
    for images in (IMAGES, arrays):
        for same in ([True, False], [np.True_, np.False_], [1, 0], np.array([True, False])):
            pairs = load_pairs(written(tmp_path, (images, same), protocol))
            assert pairs.images == IMAGES
            np.testing.assert_array_equal(pairs.same, [True, False])


def test_numpy_1_and_python_2_pickles_are_read(tmp_path: Path) -> None:
    arrays = [np.frombuffer(image, np.uint8) for image in IMAGES]
    path = written(tmp_path, (arrays, [np.True_, np.False_]), protocol=2)
    path.write_bytes(path.read_bytes().replace(b"numpy._core", b"numpy.core"))
    assert load_pairs(path).images == IMAGES
    # Python 2 spells text and bytes alike: SHORT_BINSTRING 'U', BINSTRING 'T'.
    strings = b"".join(b"T" + struct.pack("<i", len(image)) + image for image in IMAGES)
    path.write_bytes(b"\x80\x02](" + strings + b"e](\x88\x89e\x86.")
    assert load_pairs(path).images == IMAGES


class Malicious:
    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.victim,)


@pytest.mark.parametrize("protocol", range(6))
def test_a_malicious_pickle_is_refused_and_not_executed(tmp_path: Path, protocol: int) -> None:
    victim = tmp_path / "victim"
    content = (IMAGES, [True, Malicious(victim)])
    path = written(tmp_path, content, protocol)
    with pytest.raises(ValueError, match=r"pairs\.bin is not a set .*, which is refused"):
        load_pairs(path)
    assert not victim.exists()
    pickle.loads(path.read_bytes())
    assert victim.exists()  # the pickle does what it is there for


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ((IMAGES, [True]), "4 images for 1 pairs; a set has at least one pair, and two images"),
        (([], []), "0 images for 0 pairs"),
        ((IMAGES, [True, 2]), "is not a set of pairs, a pickle of"),
        ((IMAGES, [True, "no"]), "is not a set of pairs"),
        ((["face.jpg"] * 4, [True, False]), "is not a set of pairs"),
        (([*IMAGES[:3], b"hello"], [True, False]), "image 3 is not a JPEG or other image; fetch"),
        (([*IMAGES[:3], 5], [True, False]), "image 3 is neither bytes nor an array of uint8"),
        ((IMAGES, np.zeros(10**7, bool)), "it does not hold two lists"),
        (IMAGES, "is not a set of pairs"),
        (7, "is not a set of pairs"),
    ],
)
def test_what_is_no_set_of_pairs_is_refused(tmp_path: Path, content: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_pairs(written(tmp_path, content))


def test_a_broken_or_missing_file_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, (IMAGES, [True, False]))
    whole = path.read_bytes()
    for length in (0, 1, 100, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"pairs\.bin is not a set of pairs"):
            load_pairs(path)
    with pytest.raises(FileNotFoundError, match=r"none\.bin does not exist; give a \.bin set"):
        load_pairs(tmp_path / "none.bin")


def test_an_image_that_cannot_be_decoded_is_named() -> None:
    pairs = PairSet("torn", [IMAGES[0], IMAGES[1][:2000]], np.array([True]))
    np.testing.assert_array_equal(pairs.decode([0])[0], decode(IMAGES[0]))
    with pytest.raises(ValueError, match="torn image 1: not a readable image"):
        pairs.decode([0, 1])
