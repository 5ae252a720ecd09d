"""A network from outside of the package is registered by one line."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from facescale import backbones
from facescale.acceleration import accelerate_
from facescale.acceleration.folding import inference_copy
from facescale.backbones import Backbone, registry
from facescale.models.weights import load_backbone, save_backbone


class Toy(Backbone):
    """No trunk, no neck, no family."""

    def __init__(self, embedding_dim: int = 8, width: int = 4) -> None:
        super().__init__(embedding_dim=embedding_dim)
        self.layers = nn.Sequential(
            nn.AvgPool2d(16), nn.Conv2d(3, width, 1), nn.BatchNorm2d(width), nn.PReLU(width)
        )
        self.last = nn.Linear(49 * width, embedding_dim)

    def forward(self, pixels: Tensor) -> Tensor:
        self.check(pixels)
        embeddings: Tensor = self.last(self.layers(pixels.float() / 255).flatten(1))
        return embeddings


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    backbones.register("toy_wide", width=16)(backbones.register("toy")(Toy))
    yield
    for name in ("toy", "toy_wide"):
        del registry._BUILDERS[name]


def faces() -> Tensor:
    random = torch.Generator().manual_seed(0)
    return torch.randint(256, (3, 3, 112, 112), dtype=torch.uint8, generator=random)


def test_it_is_built_by_its_name_and_again_from_its_spec() -> None:
    toy = backbones.build("toy", embedding_dim=16)
    assert "toy" in backbones.NAMES
    assert isinstance(toy, Toy)
    assert (toy.name, toy.embedding_dim) == ("toy", 16)
    assert toy.spec == {"name": "toy", "embedding_dim": 16}
    assert str(backbones.build(**toy.spec)) == str(toy)
    assert backbones.build("toy_wide").state_dict()["layers.1.weight"].shape == (16, 3, 1, 1)


def test_a_generator_decides_its_weights_and_leaves_torchs_own_alone() -> None:
    before = torch.get_rng_state()
    first, same, other = (
        backbones.build("toy", generator=torch.Generator().manual_seed(seed)).state_dict()
        for seed in (1, 1, 2)
    )
    assert torch.equal(first["last.weight"], same["last.weight"])
    assert not torch.equal(first["last.weight"], other["last.weight"])
    assert torch.equal(torch.get_rng_state(), before)


def test_what_it_does_not_take_is_named() -> None:
    with pytest.raises(ValueError, match="backbone 'toy' has no neck, got 'E'; leave it out"):
        backbones.build("toy", neck="E")
    with pytest.raises(ValueError, match="backbone 'toy' has no image_size, got 56"):
        backbones.build("toy", image_size=56)
    with pytest.raises(ValueError, match="there is a backbone 'toy' already"):
        backbones.register("toy")(Toy)
    with pytest.raises(ValueError, match=r"toy takes RGB images .* got \(2, 3, 96, 112\)"):
        backbones.build("toy")(torch.zeros(2, 3, 96, 112))


def test_it_is_saved_accelerated_and_embeds_like_ours(tmp_path: object) -> None:
    toy = backbones.build("toy", generator=torch.Generator().manual_seed(0)).eval()
    with torch.no_grad():
        truth = toy(faces())
        save_backbone(f"{tmp_path}/model.safetensors", toy)
        assert torch.equal(load_backbone(f"{tmp_path}/model.safetensors")(faces()), truth)
        torch.testing.assert_close(inference_copy(toy)(faces()), truth, rtol=1e-4, atol=1e-5)
    accelerate_(toy, torch.device("cpu"), torch.float32)
    toy.train()(faces()).square().sum().backward()
    assert all(p.grad is not None for p in toy.parameters())
