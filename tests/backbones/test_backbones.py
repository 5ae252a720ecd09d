"""Backbones by themselves; test_legacy_weights compares them with MXNet and arcface_torch."""

import json

import pytest
import torch
from torch import Tensor, nn

from facescale.backbones import NAMES, Backbone, build
from facescale.backbones.backbone import normalise

TRAINABLE = {
    "r18": 24_025_088,
    "r34": 34_138_816,
    "r50": 43_590_336,
    "r100": 65_155_648,
    "r200": 118_833_408,
    "y1": 1_003_136,
    "mbf": 2_059_520,
}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_pixels(batch: int = 2, seed: int = 0) -> Tensor:
    return torch.randint(256, (batch, 3, 112, 112), dtype=torch.uint8, generator=seeded(seed))


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return float((actual.double() - expected.double()).abs().max() / expected.abs().max())


@torch.no_grad()
def embed(backbone: Backbone, pixels: Tensor) -> Tensor:
    embeddings: Tensor = backbone.eval()(pixels)
    return embeddings


@pytest.fixture(scope="module")
def y1() -> Backbone:
    return build("y1", generator=seeded())


@pytest.mark.parametrize("scale", [127.5, 128.0])
def test_pixels_are_normalised_to_the_bit_and_left_alone(scale: float) -> None:
    pixels = random_pixels().to(memory_format=torch.channels_last)
    every = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    for given in (
        pixels,
        every.to(memory_format=torch.channels_last),
        pixels.float() / 3,
        pixels.double(),
    ):
        before = given.clone()
        for dtype in (torch.float32, torch.float64):
            normal = normalise(given, dtype, scale)
            torch.testing.assert_close(normal, (before.to(dtype) - 127.5) / scale, rtol=0, atol=0)
            assert normal.is_contiguous(memory_format=torch.channels_last)
            torch.testing.assert_close(given, before, rtol=0, atol=0)


@pytest.mark.parametrize("name", TRAINABLE)
def test_parameter_counts_are_those_of_the_published_networks(name: str) -> None:
    with torch.device("meta"):
        backbone = build(name)
    assert sum(p.numel() for p in backbone.parameters() if p.requires_grad) == TRAINABLE[name]


@pytest.mark.parametrize("name", NAMES)
def test_a_backbone_is_rebuilt_from_its_spec(name: str) -> None:
    with torch.device("meta"):
        backbone = build(name)
        again = build(**json.loads(json.dumps(backbone.spec)))
    assert again.spec == backbone.spec
    assert str(again) == str(backbone)
    assert (backbone.name, backbone.embedding_dim) == (name, backbone.spec["embedding_dim"])


@pytest.mark.parametrize("neck", ["E", "FC", "GDC"])
@pytest.mark.parametrize("family", ["mxnet", "arcface_torch"])
@pytest.mark.parametrize("name", ["r18", "y1", "y2"])
def test_every_trunk_takes_every_neck_and_family(name: str, neck: str, family: str) -> None:
    embeddings = embed(build(name, 32, neck, family), random_pixels())
    assert embeddings.shape == (2, 32)
    assert embeddings.isfinite().all()


@pytest.mark.parametrize("neck", ["E", "GDC"])
@pytest.mark.parametrize("name", ["r18_half", "y1"])
def test_small_images_are_averages_of_large_ones(name: str, neck: str) -> None:
    backbone = build(name, 32, neck, image_size=56, generator=seeded())
    pixels = random_pixels().float()
    small = torch.nn.functional.avg_pool2d(pixels, 2)
    again = torch.nn.functional.interpolate(small, scale_factor=2)  # each pixel four times
    torch.testing.assert_close(embed(backbone, pixels), embed(backbone, again))
    with pytest.raises(ValueError, match=r"image_size must be one of \(112, 56, 28\), got 64"):
        build(name, image_size=64)


def test_uint8_and_float_pixels_give_the_same_embedding(y1: Backbone) -> None:
    pixels = random_pixels()
    assert torch.equal(embed(y1, pixels), embed(y1, pixels.float()))


def test_channels_last_changes_nothing() -> None:
    pixels = random_pixels()
    for name in ("r18", "y1"):
        backbone = build(name, generator=seeded())
        expected = embed(backbone, pixels)
        last = torch.channels_last
        actual = embed(backbone.to(memory_format=last), pixels.to(memory_format=last))  # type: ignore[call-overload]
        # float32 sums in another order
        assert relative_error(actual, expected) < 1e-5


def test_double_weights_compute_in_double() -> None:
    pixels = random_pixels()
    for name in ("r18", "y1"):
        backbone = build(name, generator=seeded())
        single = embed(backbone, pixels)
        double = embed(backbone.double(), pixels)
        assert double.dtype == torch.float64
        assert 1e-9 < relative_error(single, double) < 1e-5


@pytest.mark.parametrize(("name", "last_of_trunk"), [("r18_half", "layer4"), ("y1", "conv_sep")])
def test_under_autocast_the_trunk_is_bfloat16_and_the_neck_float32(
    name: str, last_of_trunk: str
) -> None:
    backbone = build(name, generator=seeded())
    inputs: list[torch.dtype] = []
    for layer in (last_of_trunk, "features"):
        backbone.get_submodule(layer).register_forward_pre_hook(
            lambda _, args: inputs.append(args[0].dtype)
        )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        embeddings = embed(backbone, random_pixels())
    assert inputs == [torch.bfloat16, torch.float32]
    assert embeddings.dtype == torch.float32


@pytest.mark.parametrize(
    ("name", "neck", "is_fixed"),
    [("y1", "E", True), ("y1", "FC", True), ("y1", "GDC", True), ("mbf", "GDC", False)],
)
def test_the_last_gamma_trains_only_in_arcface_torchs_gdc(
    name: str, neck: str, is_fixed: bool
) -> None:
    backbone = build(name, 16, neck, generator=seeded())
    last_norm = [m for m in backbone.modules() if isinstance(m, nn.BatchNorm1d)][-1]
    optimizer = torch.optim.SGD(backbone.parameters(), lr=0.1, weight_decay=0.1)
    backbone(random_pixels(batch=4)).square().sum().backward()
    optimizer.step()
    assert bool((last_norm.weight == 1).all()) is is_fixed
    assert (last_norm.bias != 0).any()
    assert all(p.grad is not None for p in backbone.parameters() if p.requires_grad)


def test_neck_e_drops_activations_in_training_and_fc_does_not() -> None:
    pixels = random_pixels(batch=4)
    with torch.no_grad():
        for neck, repeats in [("E", False), ("FC", True)]:
            backbone = build("y1", neck=neck, generator=seeded()).train()
            assert torch.equal(backbone(pixels), backbone(pixels)) is repeats
    assert build("y1", neck="E", dropout=0.25).get_submodule("dropout").p == 0.25
    assert build("y1", neck="E").spec["dropout"] == 0.4
    assert build("y1", neck="E", family="arcface_torch").spec["dropout"] == 0.0


@pytest.mark.parametrize(("family", "white"), [("mxnet", 127.5 / 128), ("arcface_torch", 1.0)])
def test_the_family_scales_the_pixels(family: str, white: float) -> None:
    backbone = build("y1", family=family)
    seen: list[Tensor] = []
    backbone.get_submodule("layers").register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    embed(backbone, torch.full((1, 3, 112, 112), 255, dtype=torch.uint8))
    assert seen[0].unique().tolist() == [white]


@pytest.mark.parametrize(
    ("name", "family", "expected"),
    [
        ("r18", "mxnet", {2e-5: 31}),
        ("r18", "arcface_torch", {1e-5: 31}),
        ("y1", "mxnet", {1e-3: 49, 2e-5: 1}),
        ("y1", "arcface_torch", {1e-5: 50}),
    ],
)
def test_the_family_sets_eps(name: str, family: str, expected: dict[float, int]) -> None:
    backbone = build(name, family=family)
    eps = [m.eps for m in backbone.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    assert {value: eps.count(value) for value in set(eps)} == expected


@pytest.mark.parametrize(
    ("name", "family", "layer", "std"),
    [
        ("r18", "mxnet", "layer3.0.conv1", 0.1),
        ("r18", "mxnet", "fc", 0.1),
        ("r18", "arcface_torch", "layer3.0.conv1", 0.1),
        ("r18", "arcface_torch", "fc", (1 / (3 * 25088)) ** 0.5),
        ("y1", "mxnet", "conv_sep.layers.0", (2 / 512) ** 0.5),
        ("mbf", "arcface_torch", "features.layers.2", (2 / 512) ** 0.5),
    ],
)
def test_the_family_starts_the_weights(name: str, family: str, layer: str, std: float) -> None:
    backbone = build(name, family=family, generator=seeded())
    weight = backbone.get_submodule(layer).weight
    assert isinstance(weight, Tensor)
    # 65,536 weights or more: their deviation is within 1 % of the law's, 3 sigma
    assert float(weight.detach().std()) == pytest.approx(std, rel=0.01)
    slopes = [m.weight for m in backbone.modules() if isinstance(m, nn.PReLU)]
    assert all((slope == 0.25).all() for slope in slopes)


def test_a_generator_decides_all_weights() -> None:
    for family in ("mxnet", "arcface_torch"):
        first, same, other = (
            torch.cat(
                [
                    p.detach().flatten()
                    for p in build("y1", 8, "E", family, generator=g).parameters()
                ]
            )
            for g in (seeded(1), seeded(1), seeded(2))
        )
        assert torch.equal(first, same)
        assert not torch.equal(first, other)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"name": "r101"}, "unknown backbone 'r101'; choose one of r18, .*, mbf_large"),
        ({"name": "r18", "neck": "Z"}, "unknown neck 'Z'; choose one of E, FC, GDC"),
        (
            {"name": "r18", "family": "tf"},
            "unknown family 'tf'; choose one of mxnet, arcface_torch",
        ),
        ({"name": "r18", "embedding_dim": 0}, "embedding_dim must be at least 1, got 0"),
        ({"name": "r18", "dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
        ({"name": "y1", "dropout": 0.0}, "neck GDC has no dropout, got 0.0"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        build(**arguments)  # type: ignore[arg-type]


def test_images_of_another_size_are_refused(y1: Backbone) -> None:
    with pytest.raises(ValueError, match=r"y1 takes RGB images .* got \(2, 3, 96, 112\)"):
        y1(torch.zeros(2, 3, 96, 112))
