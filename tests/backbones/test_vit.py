"""ViT: the published shapes, and what happens in training alone. Its goldens are in models/."""

import pytest
import torch
from torch import Tensor

from facescale.backbones import build
from facescale.backbones.vit import VisionTransformer, leave_out, put_back


def pixels(batch: int) -> Tensor:
    return torch.randint(256, (batch, 3, 112, 112), generator=torch.Generator().manual_seed(1))


def tiny(**choices: float) -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(width=16, depth=3, heads=2, embedding_dim=8, **choices)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "width", "depth"),
    [
        ("vit_b_dp005_mask_005", 512, 24),
        ("vit_l_dp005_mask_005", 768, 24),
        ("vit_h", 1024, 48),
    ],
)
def test_large_ones_have_the_published_size(name: str, width: int, depth: int) -> None:
    with torch.device("meta"):
        backbone = build(name)
    block = 3 * width**2 + width * (width + 1) + 8 * width**2 + 5 * width + 4 * width
    around = 243 * width + width + 145 * width + 2 * width
    head = 144 * width * width + 2 * width + 512 * width + 1024
    assert sum(p.numel() for p in backbone.parameters()) == depth * block + around + head


def test_left_out_tokens_come_back_in_their_places() -> None:
    x = torch.randn(5, 12, 3)
    kept, places = leave_out(x, 0.25)
    assert kept.shape == (5, 9, 3)
    token = torch.full((1, 1, 3), 7.0)
    whole = put_back(kept, token, places)
    missing = (whole == 7.0).all(dim=2)
    assert (missing.sum(dim=1) == 3).all()
    assert torch.equal(whole[~missing], x[~missing])
    assert not (missing == missing[0]).all()  # each image others


def test_masks_and_depth_are_random_in_training_alone() -> None:
    for choices in ({"mask": 0.5, "drop_path": 0.0}, {"drop_path": 0.9}):
        backbone = tiny(**choices)
        torch.manual_seed(1)
        first = backbone(pixels(4))
        again = backbone(pixels(4))
        assert not torch.equal(first, again)
        torch.manual_seed(1)
        assert torch.equal(backbone(pixels(4)), first)
        backbone.eval()
        assert torch.equal(backbone(pixels(4)), backbone(pixels(4)))


def test_a_branch_that_stays_is_larger_by_what_others_miss() -> None:
    block = tiny(drop_path=0.5).blocks[-1]
    x = torch.randn(4000, 1, 16)
    kept = block._sometimes(x)  # type: ignore[operator]
    ratio = (kept / x).mean(dim=(1, 2))
    assert set(ratio.round().tolist()) == {0.0, 2.0}
    assert abs(float(ratio.mean()) - 1.0) < 0.1


def test_what_a_vit_has_not_is_named() -> None:
    with torch.device("meta"):
        for choice, message in (
            ({"neck": "E"}, "backbone 'vit_t' has no neck, got 'E'"),
            ({"dropout": 0.4}, "has no dropout"),
            ({"image_size": 56}, "has no image_size"),
            ({"family": "mxnet"}, "unknown family of a ViT 'mxnet'; choose one of arcface_torch"),
        ):
            with pytest.raises(ValueError, match=message):
                build("vit_t", **choice)
