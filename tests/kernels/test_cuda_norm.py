"""BatchNorm, PReLU and shortcut in Triton, interpreted on the CPU, against torch in float64."""

import pytest

from facescale.timing.device.norm_truth import norm_errors
from triton_process import interpreted, needs_triton

pytestmark = needs_triton

DTYPES = {"float32": 1e-5, "bfloat16": 2**-7, "float16": 2**-10}
SHAPES = [(3, 16, 5, 7), (2, 24, 9, 9), (2, 192, 6, 5), (37, 64), (1, 512, 3, 3)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("slopes", "shortcut"), [(0, False), (0, True), (1, False)])
def test_both_passes_are_those_of_torch(
    shape: tuple[int, ...], slopes: int, shortcut: bool
) -> None:
    errors = interpreted(norm_errors, shape, "float32", slopes, shortcut)
    assert max(errors.values()) < 1e-5, errors


@pytest.mark.parametrize("dtype", DTYPES)
def test_images_of_few_bits_are_rounded_once(dtype: str) -> None:
    errors = interpreted(norm_errors, (4, 32, 7, 5), dtype, 32, True)
    assert max(errors["y"], errors["x"]) < DTYPES[dtype], errors
    assert max(value for name, value in errors.items() if name not in "xy") < 1e-5, errors


def test_running_statistics_normalise_without_moving() -> None:
    errors = interpreted(norm_errors, (2, 24, 5, 7), "float32", 24, True, False)
    assert max(errors.values()) < 1e-5, errors


def test_a_large_mean_costs_no_digits() -> None:
    errors = interpreted(norm_errors, (8, 16, 12, 12), "float32", 16, False, True, 300.0)
    # float32 itself stores these numbers to 1e-5 of their deviation.
    assert errors["mean"] < 1e-6, errors
    assert errors["variance"] < 1e-5
    assert max(errors.values()) < 2e-5


@pytest.mark.slow
def test_an_image_of_many_tiles_is_that_of_torch() -> None:
    errors = interpreted(norm_errors, (16, 64, 56, 56), "float32", 64, True)
    assert max(errors.values()) < 1e-5, errors
