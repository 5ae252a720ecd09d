"""Degradations against OpenCV, Pillow and plain arithmetic, and the recipes that use them."""

import colorsys
import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance
from torch import Tensor

from facescale.config import AugmentConfig
from facescale.data.degradations import (
    DEGRADATIONS,
    convolve,
    crop,
    downscale,
    hsv,
    low_resolution,
    photometric,
    soften,
)
from facescale.data.jpeg import compress
from facescale.data.resampling import METHODS, resize_matrices
from facescale.data.transforms import RECIPES, Augment, augmentation
from host_reads import HostReads


def picture(count: int, size: int = 112, seed: int = 0) -> Tensor:
    """Smooth, with an edge and some noise: (count, 3, size, size), whole levels."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(count, 3, 9, 9, generator=generator)
    smooth = torch.nn.functional.interpolate(noise, (size, size), mode="bicubic")
    smooth[:, :, :, size // 3 :] *= 0.6
    fine = torch.rand(count, 3, size, size, generator=generator)
    return (255 * (0.9 * smooth + 0.1 * fine)).clamp(0, 255).round()


def draws(count: int, columns: int, seed: int = 0) -> Tensor:
    return torch.rand(count, columns, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("method", range(5))
@pytest.mark.parametrize(("source", "target"), [(112, 23), (112, 56), (112, 98), (47, 112)])
def test_an_image_is_resized_as_by_opencv(method: int, source: int, target: int) -> None:
    cv2 = pytest.importorskip("cv2", reason="the comparison needs the extra 'photos'")
    image = picture(1, source)[0]
    flag = {
        "nearest": cv2.INTER_NEAREST,
        "linear": cv2.INTER_LINEAR,
        "area": cv2.INTER_AREA,
        "cubic": cv2.INTER_CUBIC,
        "lanczos": cv2.INTER_LANCZOS4,
    }[METHODS[method]]
    pixels = np.ascontiguousarray(image.permute(1, 2, 0).byte().numpy())
    expected = cv2.resize(pixels, (target, target), interpolation=flag).astype(int)
    matrix = resize_matrices(source, target, torch.tensor([method]), 112)
    assert not matrix[0, target:].any()
    assert not matrix[0, :, source:].any()
    inner = matrix[:, :target, :source]
    found = (inner @ image @ inner.mT).round().clamp(0, 255).permute(1, 2, 0).numpy()
    difference = np.abs(found - expected)
    assert difference.max() <= (0 if METHODS[method] == "nearest" else 1)
    assert difference.mean() < 0.2  # its weights are fixed-point numbers


def test_rows_of_a_resize_sum_to_one_for_every_method_and_size() -> None:
    for method in range(len(METHODS)):
        for source, target in ((112, 22), (112, 112), (30, 112), (1, 112), (112, 1)):
            matrix = resize_matrices(source, target, torch.tensor([method]), 112)
            torch.testing.assert_close(matrix[0, :target].sum(1), torch.ones(target))


@pytest.mark.parametrize("quality", [10, 30, 50, 75, 90])
def test_what_jpeg_leaves_is_what_libjpeg_leaves(quality: int) -> None:
    images = picture(2)
    images[0] = images[0, :1]  # grey
    found = compress(images, torch.full((2,), float(quality)))
    for image, ours, bound in zip(images, found, (0.5, 1.2), strict=True):
        file = io.BytesIO()
        pixels = image.permute(1, 2, 0).byte().numpy()
        Image.fromarray(pixels).save(file, "JPEG", quality=quality, subsampling="4:2:0")
        theirs = np.asarray(Image.open(file)).astype(float)
        difference = np.abs(theirs - ours.permute(1, 2, 0).numpy())
        assert difference.mean() < bound  # they round chroma in other places, which counts twice
        assert np.abs(theirs - pixels).mean() > 4 * difference.mean()


def test_jpeg_takes_images_whose_sides_are_no_multiple_of_sixteen() -> None:
    images = torch.full((1, 3, 19, 37), 100.0)
    torch.testing.assert_close(compress(images, torch.tensor([50.0])), images, rtol=0, atol=4)


def test_the_crop_keeps_one_rectangle_of_the_drawn_area_in_its_place() -> None:
    images = 1 + picture(1).clamp(0, 254).expand(400, -1, -1, -1)
    cropped = crop(images, draws(400, 22))
    kept = cropped[:, 0] > 0
    assert torch.equal(cropped, images * kept[:, None])
    height, width = kept.any(2).sum(1), kept.any(1).sum(1)
    area = kept.flatten(1).sum(1) / 112**2
    assert torch.equal(height * width, kept.flatten(1).sum(1))
    assert 0.19 < area.min() < 0.25
    assert 0.9 < area.max() <= 1.0
    assert 0.45 < area.mean() < 0.6  # 0.6 less what does not fit
    ratio = width / height
    assert 0.73 < ratio.min() < 0.8 < 1.25 < ratio.max() < 1.37


def test_low_resolution_repeats_the_pixels_of_a_smaller_image() -> None:
    nearest = torch.tensor([[0.5, 0.0, 0.0]])  # half of the way from 20 to 100 %: 67 pixels
    found = low_resolution(picture(1), nearest)[0, 0]
    assert len({row.numpy().tobytes() for row in found}) == 67
    same = low_resolution(picture(1), torch.tensor([[0.9999, 0.99, 0.99]]))
    assert (same - picture(1)).abs().mean() < 8
    many = low_resolution(picture(50), draws(50, 3))
    loss = (many - picture(50)).abs().mean((1, 2, 3))
    assert loss.min() < loss.max() / 3


def test_downscaling_keeps_the_mean_and_loses_detail() -> None:
    images = picture(20)
    found = downscale(images, draws(20, 1))
    torch.testing.assert_close(found.mean((2, 3)), images.mean((2, 3)), rtol=0, atol=1)
    rough = (images.diff(dim=3).abs().mean(), found.diff(dim=3).abs().mean())
    assert rough[1] < 0.8 * rough[0]


@pytest.mark.parametrize(("draw", "window"), [(0.2, 3), (0.7, 5)])
def test_softening_is_opencvs_gaussian_window(draw: float, window: int) -> None:
    cv2 = pytest.importorskip("cv2", reason="the comparison needs the extra 'photos'")
    image = picture(1)
    expected = cv2.GaussianBlur(image[0].permute(1, 2, 0).numpy(), (window, window), 0)
    found = soften(image, torch.tensor([[draw]]))[0].permute(1, 2, 0).numpy()
    if window == 3:  # OpenCV has a fixed kernel for small windows, 1/4 1/2 1/4
        assert np.abs(found - expected).mean() < 1
    else:
        sigma = cv2.getGaussianKernel(5, 1.1)
        expected = cv2.sepFilter2D(image[0].permute(1, 2, 0).numpy(), -1, sigma, sigma)
        np.testing.assert_allclose(found, expected, atol=1e-2)


def test_each_image_is_convolved_with_its_own_weights() -> None:
    images = picture(2)
    weights = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    found = convolve(images, weights, "replicate")
    assert torch.equal(found[0], images[0])
    assert torch.equal(found[1, :, 1:, 1:], images[1, :, :-1, :-1])


def test_the_hue_turns_and_grey_stays() -> None:
    red = torch.tensor([180.0, 90, 90])[None, :, None, None].expand(1, 3, 2, 2)
    turned = hsv(red, torch.tensor([[0.999, 0.0]]))[0, :, 0, 0] / 255
    hue = 360 * colorsys.rgb_to_hsv(*turned.tolist())[0]
    assert 10 < min(hue, 360 - hue) < 30
    torch.testing.assert_close(hsv(red, torch.zeros(1, 2)), red, rtol=0, atol=0.2)
    grey = torch.full((1, 3, 4, 4), 77.0)
    torch.testing.assert_close(hsv(grey, draws(1, 2)), grey, rtol=0, atol=0.5)


def test_photometric_changes_are_pillows_in_each_order() -> None:
    names = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    image = picture(1)
    for number, order in enumerate(
        [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)]
    ):
        factors = (0.7, 1.4, 0.6)
        drawn = torch.tensor([[factor - 0.5 for factor in factors] + [(number + 0.5) / 6]])
        found = photometric(image, drawn)[0].permute(1, 2, 0).numpy()
        expected = Image.fromarray(image[0].permute(1, 2, 0).byte().numpy())
        for kind in order:
            expected = names[kind](expected).enhance(factors[kind])
        assert np.abs(found - np.asarray(expected)).max() < 4  # Pillow rounds after each step


@pytest.mark.parametrize("name", sorted(DEGRADATIONS))
def test_about_a_chance_of_the_images_are_changed_and_the_others_stay(name: str) -> None:
    images = picture(1).expand(200, -1, -1, -1).byte()
    changed = Augment(**{"flip": 0.0, name: 0.3})(images, seed=3, position=0)  # type: ignore[arg-type]
    touched = (changed - images).abs().flatten(1).amax(1) > 0
    assert 30 < int(touched.sum()) < 90
    assert changed.dtype == torch.float32
    assert changed.is_contiguous(memory_format=torch.channels_last)
    assert 0 <= changed.min() <= changed.max() <= 255


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_a_recipe_is_a_function_of_seed_and_position(name: str) -> None:
    images = picture(11).byte()
    recipe = augmentation(name)
    whole = recipe(images, seed=7, position=1000)
    for share in (1, 4):
        parts = [
            recipe(images[start : start + share], seed=7, position=1000 + start)
            for start in range(0, 12, share)  # the last rank gets nothing
        ]
        torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=2e-3)
    assert not torch.equal(whole, recipe(images, seed=8, position=1000))


def test_the_recipes_are_those_of_the_peers_and_single_amounts_replace_theirs() -> None:
    assert augmentation() == Augment() == augmentation("flip")
    ada = augmentation("adaface")
    assert (ada.flip, ada.crop, ada.low_resolution, ada.photometric) == (0.5, 0.2, 0.2, 0.2)
    assert augmentation("adaface", crop=0.0, jpeg=0.1, flip=None) == Augment(
        low_resolution=0.2, photometric=0.2, jpeg=0.1
    )
    with pytest.raises(ValueError, match=r"augment\.recipe is 'adface'; choose one of flip"):
        augmentation("adface")
    fields = set(AugmentConfig.__dataclass_fields__)
    assert fields == {"recipe", *Augment.__dataclass_fields__}
    assert set(DEGRADATIONS) < fields


def test_a_degraded_batch_asks_the_device_nothing() -> None:
    everything = Augment(**dict.fromkeys(DEGRADATIONS, 0.5))  # type: ignore[arg-type]
    images = picture(8).byte()
    with HostReads() as spy:
        everything(images, seed=1, position=0)
    assert [place for place in spy.found if "transforms.py" not in place] == []
    assert {place.split(" ")[1] for place in spy.found} <= {"nonzero"}  # of _mirror, on the host


@pytest.mark.parametrize("name", sorted(DEGRADATIONS))
def test_nothing_is_copied_to_another_device_while_the_host_waits(name: str) -> None:
    kind = DEGRADATIONS[name]
    images = torch.empty(4, 3, 112, 112, device="meta")  # another device than the host
    with HostReads() as spy:
        worse = kind.apply(images, draws(4, kind.draws))
    assert worse.device == images.device
    assert worse.shape == images.shape
    assert dict(spy.found) == {}
