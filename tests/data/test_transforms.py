import numpy as np
import pytest
import torch
from torch import Tensor

from facescale.data import transforms
from facescale.data.transforms import Augment
from facescale.kernels.cpu import pixels

EVERYTHING = Augment(
    flip=0.5,
    shift=5,
    scale=0.1,
    rotate=15,
    brightness=0.3,
    contrast=0.3,
    saturation=0.5,
    grey=0.2,
    blur=1.0,
    erase=40,
)


def batch(size: int, seed: int = 0) -> Tensor:
    """As the loader gives them: uint8, channels_last."""
    generator = torch.Generator().manual_seed(seed)
    shape = (size, 112, 112, 3)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8).permute(0, 3, 1, 2)


def smooth(size: int) -> Tensor:
    noise = torch.rand(size, 3, 7, 7, generator=torch.Generator().manual_seed(0))
    big = torch.nn.functional.interpolate(noise, (112, 112), mode="bicubic", align_corners=True)
    return 255 * (big - big.min()) / (big.max() - big.min())


def nothing_but(**amounts: float) -> Augment:
    return Augment(**{"flip": 0.0, **amounts})  # type: ignore[arg-type]


def test_flipping_is_exact_and_happens_to_half_of_the_images() -> None:
    images = batch(2000)[:, :, :4, :6]
    flipped = Augment()(images, seed=1, position=0)
    assert flipped.dtype == torch.uint8
    mirrored = (flipped == images.flip(3)).flatten(1).all(1)
    assert (mirrored ^ (flipped == images).flatten(1).all(1)).all()
    assert abs(int(mirrored.sum()) - 1000) < 112  # five standard deviations
    assert (nothing_but()(images, seed=1, position=0) == images).all()
    assert (Augment(flip=1.0)(images, seed=1, position=0) == images.flip(3)).all()


@pytest.mark.parametrize("width", [1, 4, 5, 6, 7, 11, 12, 56, 112])
@pytest.mark.parametrize("native", [True, False])
def test_images_of_any_width_are_mirrored_whole(
    monkeypatch: pytest.MonkeyPatch, width: int, native: bool
) -> None:
    if not native:
        monkeypatch.setattr(pixels, "serves", lambda images: False)
    images = torch.randint(256, (9, 13, width, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    before, chosen = images.clone(), torch.arange(9) % 3 == 0
    mirrored = transforms._mirror(images, chosen)
    assert torch.equal(mirrored[chosen], before[chosen].flip(3))
    assert torch.equal(mirrored[~chosen], before[~chosen])
    assert torch.equal(images, before)


def test_the_layout_of_the_batch_stays() -> None:
    for augment in (Augment(), EVERYTHING):
        images = augment(batch(4), seed=1, position=0)
        assert images.is_contiguous(memory_format=torch.channels_last)
    assert images.dtype == torch.float32
    assert 0 <= images.min() < images.max() <= 255


@pytest.mark.parametrize("augment", [Augment(), EVERYTHING])
def test_a_sample_changes_alike_however_ranks_share_the_batch(augment: Augment) -> None:
    images = batch(11)
    whole = augment(images, seed=7, position=1000)
    for share in (1, 3, 4, 8):
        parts = [
            augment(images[start : start + share], seed=7, position=1000 + start)
            for start in range(0, 16, share)  # the last ranks get nothing
        ]
        torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=0)


def test_another_seed_or_position_is_another_change() -> None:
    images = batch(1).expand(40, -1, -1, -1)
    one = EVERYTHING(images, seed=1, position=0)
    assert not torch.equal(one[0], one[1])
    assert not torch.equal(one, EVERYTHING(images, seed=2, position=0))
    torch.testing.assert_close(one[1:], EVERYTHING(images[1:], seed=1, position=1), rtol=0, atol=0)


def test_turning_one_change_on_leaves_the_others_as_they_were() -> None:
    images = smooth(20)
    erased = nothing_but(erase=40)(images, seed=1, position=0) == 127.5
    both = nothing_but(erase=40, contrast=0.2)(images, seed=1, position=0) == 127.5
    assert torch.equal(erased, both)


def test_a_shift_moves_whole_pixels_and_repeats_the_border() -> None:
    images = batch(300)[:, :, :30, :40]
    moved = nothing_but(shift=2)(images, seed=3, position=0)
    padded = torch.nn.functional.pad(images.float(), (2, 2, 2, 2), mode="replicate")
    shifts = {}
    for dy in range(-2, 3):
        for dx in range(-2, 3):
            there = padded[:, :, 2 - dy : 32 - dy, 2 - dx : 42 - dx]
            shifts[dy, dx] = ((moved - there).abs().flatten(1).amax(1) < 0.02).sum()  # rounding
    assert sum(shifts.values()) == 300
    assert min(shifts.values()) > 0  # 12 expected of each


def test_rotation_and_scale_turn_about_the_middle() -> None:
    # Pixels that say where they are, so that the result says where each pixel came from.
    place = torch.arange(112.0) - 55.5
    x, y = place.expand(112, 112), place[:, None].expand(112, 112)
    images = torch.stack([x, y, x * 0]).expand(60, -1, -1, -1)
    moved = nothing_but(rotate=20, scale=0.2)(images, seed=5, position=0)
    inner = slice(28, 84)  # nothing comes from beyond the border
    source = moved[:, :2, inner, inner].flatten(2).mT.double()  # (60, pixels, 2)
    target = images[:, :2, inner, inner].flatten(2).mT.double()
    matrix = torch.linalg.lstsq(target, source).solution
    torch.testing.assert_close(target @ matrix, source, rtol=0, atol=1e-3)
    zoom = matrix.det().rsqrt()  # sources lie closer together where the image is enlarged
    angle = torch.atan2(matrix[:, 1, 0], matrix[:, 0, 0])
    rotation = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1).view(-1, 2, 2)
    torch.testing.assert_close(matrix * zoom[:, None, None], rotation, rtol=0, atol=1e-4)
    degrees = angle.rad2deg()
    assert -20 <= degrees.min() < -15 < 15 < degrees.max() <= 20
    assert 0.8 <= zoom.min() < 0.85 < 1.15 < zoom.max() <= 1.2
    assert abs(np.corrcoef(degrees, zoom)[0, 1]) < 0.4


def test_what_lies_beyond_the_border_repeats_it() -> None:
    images = torch.full((20, 3, 112, 112), 77.0)
    moved = nothing_but(rotate=45, scale=0.5, shift=50)(images, seed=5, position=0)
    torch.testing.assert_close(moved, images)


def test_brightness_contrast_and_saturation_are_what_they_say() -> None:
    images = 100 + smooth(50) / 5  # nothing is clipped
    luma = (images * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)
    mean = luma.mean((2, 3), keepdim=True)
    for name, centre in (
        ("brightness", torch.zeros(())),
        ("contrast", mean),
        ("saturation", luma),
    ):
        changed = nothing_but(**{name: 0.3})(images, seed=2, position=0)
        distance, was = (changed - centre).flatten(1), (images - centre).flatten(1)
        factor = (distance * was).sum(1) / was.square().sum(1)
        assert 0.7 <= factor.min() < 0.8 < 1.2 < factor.max() <= 1.3
        torch.testing.assert_close(distance, factor[:, None] * was, rtol=0, atol=1e-3)


def test_grey_takes_all_colour_from_some() -> None:
    images = smooth(200)
    changed = nothing_but(grey=0.25)(images, seed=2, position=0)
    is_grey = (changed - changed[:, :1]).abs().amax((1, 2, 3)) < 1e-3
    untouched = (changed - images).abs().amax((1, 2, 3)) < 1e-3
    assert (is_grey ^ untouched).all()
    assert 25 < int(is_grey.sum()) < 75


def test_pixels_stay_within_their_range() -> None:
    changed = nothing_but(brightness=1.0, contrast=1.0)(batch(50), seed=2, position=0)
    assert changed.min() == 0
    assert changed.max() == 255


def test_blur_is_a_gaussian() -> None:
    dot = torch.zeros(30, 3, 41, 41)
    dot[:, :, 20, 20] = 255
    blurred = nothing_but(blur=2.0)(dot, seed=1, position=0)
    place = torch.arange(41.0) - 20
    weight = blurred[:, 0] / 255
    torch.testing.assert_close(weight.sum((1, 2)), torch.ones(30))
    variance = (weight.sum(1) * place**2).sum(1)
    # Outside the radius lies 0.3 % of the widest Gaussian, and narrow ones are spikes on the grid.
    assert (variance.sqrt() < 2).all()
    wide = variance > 0.5
    torch.testing.assert_close(
        weight[wide][:, 20, 22] / weight[wide][:, 20, 20],
        torch.exp(-2 / variance[wide]),
        rtol=0.02,
        atol=0,
    )
    torch.testing.assert_close(weight, weight.mT)


def test_erasing_puts_one_square_of_mid_grey_inside() -> None:
    images = torch.zeros(400, 3, 60, 60)
    erased = nothing_but(erase=30)(images, seed=4, position=0)
    assert set(erased.unique().tolist()) == {0.0, 127.5}
    inside = erased[:, 0] > 0
    height, width = inside.any(2).sum(1), inside.any(1).sum(1)
    assert torch.equal(height, width)
    assert torch.equal(inside.sum((1, 2)), height * width)
    assert (int(height.min()), int(height.max())) == (0, 30)
    assert inside.any(0)[[0, -1]].any(1).all()  # it reaches every edge
    assert inside.any(0)[:, [0, -1]].any(0).all()


def test_amounts_out_of_range_are_refused() -> None:
    for name, value in (("flip", 1.5), ("shift", -1), ("scale", 1.0), ("grey", -0.1)):
        with pytest.raises(ValueError, match=rf"augment\.{name} must be in .*, got {value}"):
            nothing_but(**{name: value})
