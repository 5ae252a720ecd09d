"""What embeds for verification answers as the network that was trained."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from facescale import backbones
from facescale.acceleration import folding
from facescale.acceleration.folding import fold, inference_copy
from facescale.backbones import Backbone, registry
from facescale.distributed import make_mesh
from facescale.training.sync_batchnorm import synchronise_norms_

pytestmark = pytest.mark.usefixtures("short_networks")

NETWORKS: list[dict[str, Any]] = [
    {"name": "r18_half", "dropout": 0.4},
    {"name": "r18_half", "neck": "FC", "image_size": 56},
    {"name": "r18_half", "neck": "GDC", "family": "arcface_torch"},
    {"name": "y1"},
    {"name": "mbf"},
    {"name": "y2", "neck": "E", "image_size": 28},
]


def lived_in(**spec: Any) -> Backbone:
    """In training mode, with every number of every BatchNorm and PReLU its own."""
    random = torch.Generator().manual_seed(1)
    backbone = backbones.build(**spec, generator=random)
    for module in backbone.modules():
        if isinstance(module, _BatchNorm):
            for value in (module.weight.data, module.bias.data, module.running_mean):
                assert value is not None
                value.normal_(generator=random)
            assert module.running_var is not None
            module.running_var.uniform_(0.5, 2.0, generator=random)
            module.weight.data[0] = 0.0  # a channel that is switched off: nothing to divide by
        if isinstance(module, nn.PReLU):
            module.weight.data.uniform_(-0.5, 0.5, generator=random)
        if isinstance(module, nn.Linear) and module.bias is not None:
            module.bias.data.normal_(generator=random)
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.weight.data.normal_(std=module.weight[0].numel() ** -0.5, generator=random)
    return backbone.train()


def faces(count: int) -> Tensor:
    random = torch.Generator().manual_seed(2)
    return torch.randint(256, (count, 3, 112, 112), dtype=torch.uint8, generator=random)


def plainly(backbone: Backbone, pixels: Tensor) -> Tensor:
    """Its answer in eval mode; it stays in training mode."""
    with torch.no_grad():
        answer: Tensor = backbone.eval()(pixels)
    backbone.train()
    return answer


def difference(answer: Tensor, truth: Tensor) -> float:
    return float((answer - truth).abs().max() / truth.abs().max())


@pytest.mark.parametrize("spec", NETWORKS, ids=str)
@pytest.mark.parametrize("make", [fold, inference_copy])
def test_folded_is_the_same_function(
    make: Callable[[Backbone], Backbone], spec: dict[str, Any]
) -> None:
    backbone, pixels = lived_in(**spec).double(), faces(3)
    assert difference(make(backbone)(pixels), plainly(backbone, pixels)) < 1e-12
    backbone.float()
    assert difference(make(backbone)(pixels), plainly(backbone, pixels)) < 1e-5


def test_no_batchnorm_is_left_but_the_first_of_an_iresnet_unit() -> None:
    for spec in NETWORKS:
        folded = fold(backbones.build(**spec))
        left = [n for n, m in folded.named_modules() if isinstance(m, _BatchNorm | nn.Dropout)]
        units = [name for name, m in folded.named_modules() if hasattr(m, "downsample")]
        assert left == [f"{unit}.bn1" for unit in units]


@pytest.mark.parametrize("name", ["r18_half", "mbf"])
def test_any_batch_in_any_layout_after_the_weights_are_laid_out(name: str) -> None:
    backbone = lived_in(name=name)
    copy = inference_copy(backbone)
    assert any(isinstance(module, folding._PackedConv2d) for module in copy.modules())
    for count, layout in [(2, torch.channels_last), (5, torch.contiguous_format)]:
        pixels = faces(count).contiguous(memory_format=layout)
        for context in (torch.no_grad(), torch.inference_mode()):
            with context:
                assert difference(copy(pixels), plainly(backbone, pixels)) < 1e-5


def test_the_network_in_training_is_left_alone_and_not_followed() -> None:
    backbone, pixels = lived_in(name="r18_half"), faces(2)
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    copy = inference_copy(backbone)
    answer = copy(pixels)
    assert backbone.training
    assert not copy.training
    assert not any(p.requires_grad for p in copy.parameters())
    for name, value in backbone.state_dict().items():
        assert torch.equal(value, before[name]), name
        value.zero_()
    assert torch.equal(copy(pixels), answer)


def test_under_autocast_the_convolutions_follow_it() -> None:
    backbone, pixels = lived_in(name="y1"), faces(2)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        copy = inference_copy(backbone)
        answer, truth = copy(pixels), plainly(backbone, pixels)
    assert not any(isinstance(module, folding._PackedConv2d) for module in copy.modules())
    exact = plainly(backbone, pixels)
    assert difference(truth, exact) > 1e-3  # autocast is felt
    assert 1e-3 < difference(answer, exact) < 3 * difference(truth, exact)


def folded_from_several(rank: int) -> float:
    backbone, pixels = lived_in(name="y1"), faces(2)
    truth = plainly(backbone, pixels)
    synchronise_norms_(backbone, make_mesh().world)
    return difference(inference_copy(backbone)(pixels), truth)


def test_batchnorm_over_all_ranks_folds_too(run_ranks: Callable[..., list[Any]]) -> None:
    assert max(run_ranks(folded_from_several, 2)) < 1e-5


class Standardised(nn.Conv2d):
    """A convolution whose kernels have mean 0, and length 1 together, whatever its weights are."""

    def forward(self, input: Tensor) -> Tensor:
        kernels = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return functional.conv2d(input, kernels / kernels.norm(), self.bias)


class ActivatedNorm(nn.BatchNorm2d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).relu()


class ActivatedSequential(nn.Sequential):
    def forward(self, input: Tensor) -> Tensor:
        for layer in self:
            input = layer(input).relu()
        return input


def hooked(layer: nn.Module) -> nn.Module:
    layer.register_forward_hook(lambda module, inputs, output: output.relu())
    return layer


FOREIGN: dict[str, Callable[[], nn.Module]] = {
    "convolution of another class": lambda: nn.Sequential(Standardised(3, 4, 3), nn.BatchNorm2d(4)),
    "norm of another class": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), ActivatedNorm(4)),
    "sequence of another class": lambda: ActivatedSequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)),
    "convolution with a hook": lambda: nn.Sequential(hooked(nn.Conv2d(3, 4, 3)), nn.BatchNorm2d(4)),
    "norm without weights": lambda: nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False)
    ),
    "norm without statistics": lambda: nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)
    ),
    "padding by reflection": lambda: nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"),
    "padding by name": lambda: nn.Conv2d(3, 4, 3, padding="same"),
    "norm of tokens": lambda: nn.Sequential(nn.Flatten(2), nn.Linear(196, 6), nn.BatchNorm1d(3)),
    "linear layer over tokens": lambda: nn.Sequential(
        nn.BatchNorm2d(3), nn.Flatten(2), nn.Linear(196, 6)
    ),
}
"""Layers of networks from outside that are not what they look like."""


class Foreign(Backbone):
    """A network from outside of the package, with a buffer that is in no state dict."""

    def __init__(self, make: Callable[[], nn.Module], embedding_dim: int = 8) -> None:
        super().__init__(embedding_dim=embedding_dim)
        self.register_buffer("shift", torch.full((3, 1, 1), 0.5), persistent=False)
        self.layers = make()

    def forward(self, pixels: Tensor) -> Tensor:
        small = functional.avg_pool2d(pixels.float(), 8) / 255 - self.get_buffer("shift")
        found: Tensor = self.layers(small).flatten(1)
        return found[:, :: found.shape[1] // self.embedding_dim]


@pytest.mark.parametrize("kind", FOREIGN)
def test_what_is_not_quite_a_layer_of_torch_stays(
    monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setitem(registry._BUILDERS, "foreign", partial(Foreign, FOREIGN[kind]))
    backbone = backbones.build("foreign").train()
    random = torch.Generator().manual_seed(1)
    for name, value in backbone.state_dict().items():
        if value.is_floating_point():
            value.normal_(generator=random)
            if name.endswith("running_var"):
                value.abs_().add_(0.5)
    backbone.get_buffer("shift").fill_(0.7)
    pixels = faces(3)
    assert difference(inference_copy(backbone)(pixels), plainly(backbone, pixels)) < 1e-5
