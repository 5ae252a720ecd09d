"""Alignment against plain least squares, plain bilinear interpolation and InsightFace's faces."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from facescale.data.images import decode_whole
from facescale.evaluation.alignment import TEMPLATE, align, similarity, warp
from shared_data import shared_data

IDENTITY = np.eye(2, 3)


def picture(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@given(st.integers(0, 1000))
def test_the_similarity_is_the_least_squares_solution(seed: int) -> None:
    points = np.random.default_rng(seed).uniform(0, 250, (5, 2))
    rows, wanted = [], []
    for (x, y), target in zip(points, TEMPLATE, strict=True):  # unknown: a, b, shift x, shift y
        rows += [[x, -y, 1, 0], [y, x, 0, 1]]
        wanted += list(target)
    a, b, shift_x, shift_y = np.linalg.lstsq(np.array(rows), np.array(wanted), rcond=None)[0]
    expected = [[a, -b, shift_x], [b, a, shift_y]]
    np.testing.assert_allclose(similarity(points), expected, rtol=1e-3, atol=1e-3)


def test_a_turned_and_scaled_template_is_turned_back() -> None:
    turn = np.array([[np.cos(0.4), -np.sin(0.4)], [np.sin(0.4), np.cos(0.4)]])
    found = similarity(TEMPLATE @ (2.5 * turn).T + [30, 7])
    np.testing.assert_allclose(found[:, :2], turn.T / 2.5, atol=1e-5)


def test_the_identity_and_a_shift_move_pixels_as_they_are() -> None:
    image = picture(112, 112)
    np.testing.assert_array_equal(warp(image, IDENTITY), image)
    shifted = warp(image, IDENTITY + np.array([[0, 0, 5], [0, 0, -9]]))
    np.testing.assert_array_equal(shifted[:-9, 5:], image[9:, :-5])
    assert not shifted[-9:].any()
    assert not shifted[:, :5].any()


def test_the_warp_is_bilinear_with_black_outside() -> None:
    image = picture(40, 30)
    matrix = np.array([[1.7, -0.6, 20.0], [0.5, 1.9, 11.0]])
    found = warp(image, matrix, 64).astype(int)

    def tap(row: int, column: int) -> NDArray[np.float64]:
        inside = 0 <= row < 40 and 0 <= column < 30
        return image[row, column].astype(float) if inside else np.zeros(3)

    for y in range(0, 64, 3):
        for x in range(0, 64, 3):
            sx, sy = np.linalg.solve(matrix[:, :2], np.array([x, y]) - matrix[:, 2])
            i, j = int(np.floor(sy)), int(np.floor(sx))
            low, right = sy - i, sx - j
            expected = (1 - low) * ((1 - right) * tap(i, j) + right * tap(i, j + 1))
            expected += low * ((1 - right) * tap(i + 1, j) + right * tap(i + 1, j + 1))
            assert np.abs(found[y, x] - expected).max() <= 0.51


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (np.zeros((4, 2)), "needs 5 finite points"),
        (np.full((5, 2), np.nan), "needs 5 finite points"),
        (np.full((5, 2), 17.0), r"all points lie at \[17.0, 17.0\]"),
    ],
)
def test_points_that_make_no_face_are_refused(points: NDArray[np.float64], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        align(picture(50, 50), points)


def test_landmarks_of_photographs_end_on_the_template() -> None:
    lines = shared_data("photos_landmarks.csv").read_text().splitlines()[1:40]
    for line in lines:
        file, detected, *numbers = line.split(",")
        if not int(detected):
            continue
        points = np.array(numbers, float).reshape(5, 2)
        matrix = similarity(points)
        placed = points @ matrix[:, :2].T + matrix[:, 2]
        assert np.abs(placed - TEMPLATE).max() < 12, file
        face = align(decode_whole(shared_data(f"photos/{file}").read_bytes()), points)
        assert face.shape == (112, 112, 3)
        assert face[30:80, 30:80].std() > 5
