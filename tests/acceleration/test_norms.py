"""Layers of a CUDA device are torch's: BatchNorm, PReLU and shortcut in Triton's interpreter."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from conftest import shortened
from facescale import backbones
from facescale.acceleration import accelerate_
from facescale.acceleration.norms import NormedLayers, NormedUnit
from facescale.backbones.iresnet import Unit
from facescale.backbones.layers import Layers, conv_bn, conv_bn_prelu
from triton_process import interpreted, needs_triton

pytestmark = needs_triton

LAYERS: dict[str, Callable[[], nn.Module]] = {
    "unit": lambda: Unit(16, 16, 1, 2e-5),
    "halving unit": lambda: Unit(16, 32, 2, 2e-5),
    "conv_bn": lambda: conv_bn(16, 24, 3, eps=1e-3),
    "conv_bn_prelu": lambda: conv_bn_prelu(16, 16, 3, eps=1e-3, groups=16),
    "neck": lambda: Layers(
        conv_bn(16, 16, (6, 5), groups=16, padding=0, eps=1e-3),  # type: ignore[arg-type]
        nn.Flatten(),
        nn.Linear(16, 8),
        nn.BatchNorm1d(8),
    ),
}


def pair(name: str) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    plain = LAYERS[name]().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for layer in plain.modules():
        if isinstance(layer, nn.PReLU | nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.1, 0.9)
    fast = deepcopy(plain)
    accelerate_(fast, torch.device("cuda"), torch.float32)
    return plain, fast


def passes(network: nn.Module, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """All that two steps leave."""
    random = torch.Generator().manual_seed(1)
    found: dict[str, Tensor] = {}
    for _ in range(2):
        x = torch.randn(3, 16, 6, 5, generator=random)
        x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            y = network(x)
        y.backward(torch.randn(y.shape, generator=random).to(y.dtype))
        found |= {"y": y.detach().float(), "x": x.grad}  # type: ignore[dict-item]
    found |= {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    return found | {name: buffer.float() for name, buffer in network.named_buffers()}


def trains_as_torch(name: str, dtype: torch.dtype, tolerance: float) -> None:
    plain, fast = pair(name)
    assert type(fast) in (NormedUnit, NormedLayers)
    x = torch.randn(3, 16, 6, 5).contiguous(memory_format=torch.channels_last)
    assert "_NormAct" in type(deepcopy(fast)(x).grad_fn).__name__
    truth, found = passes(plain, dtype), passes(fast, dtype)
    assert truth.keys() == found.keys()
    for key, tensor in truth.items():
        if tensor.norm() < 1e-5:  # of a shift in front of another norm: nothing but rounding
            assert found[key].norm() < 1e-4, key
            continue
        error = (found[key] - tensor).norm() / tensor.norm().clamp_min(1e-3)
        assert error < tolerance, (key, float(error))
    assert torch.allclose(fast.eval()(x), plain.eval()(x), atol=0.05)


@pytest.mark.parametrize("name", LAYERS)
def test_layers_train_as_those_of_torch(name: str) -> None:
    interpreted(trains_as_torch, name, torch.float32, 1e-4)


def test_a_unit_trains_in_bfloat16() -> None:
    interpreted(trains_as_torch, "halving unit", torch.bfloat16, 5e-2)


def other_ways() -> None:
    """What the kernels do not know is done by torch: hooks, other layouts, one value a channel."""
    plain, fast = pair("unit")
    seen: list[Any] = []
    fast.bn3.register_forward_hook(lambda *args: seen.append(args))  # type: ignore[union-attr]
    x = torch.randn(3, 16, 4, 4)
    torch.testing.assert_close(fast(x), plain(x))
    assert len(seen) == 1
    _, layers = pair("conv_bn_prelu")
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        layers(torch.randn(1, 16, 1, 1))


def test_what_the_kernels_do_not_know_is_left_to_torch() -> None:
    interpreted(other_ways)


def whole_network(name: str) -> None:
    """A step of stem, trunk and neck is as near to float64 as torch's, without its BatchNorm."""
    torch.manual_seed(0)
    with shortened():
        plain = backbones.build(name, image_size=28, dropout=0.0 if name != "y1" else None)
    plain = plain.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    fast, truth = deepcopy(plain), deepcopy(plain).double()
    accelerate_(fast, torch.device("cuda"), torch.float32)
    pixels = torch.randint(256, (4, 3, 112, 112), dtype=torch.uint8)
    pixels = pixels.contiguous(memory_format=torch.channels_last)
    calls = []
    for network in (truth, plain, fast):
        with mock.patch.object(torch, "batch_norm", wraps=torch.batch_norm) as norms:
            embeddings = network(pixels)
            weights = torch.linspace(-1, 1, embeddings.numel()).view_as(embeddings)
            (embeddings * weights).sum().backward()
        calls.append(norms.call_count)
    assert calls[0] == calls[1] > 5
    assert calls[2] == 0
    parameters = (network.named_parameters() for network in (truth, plain, fast))
    for (key, exact), (_, torchs), (_, ours) in zip(*parameters, strict=True):
        if exact.grad is None:
            continue
        size = exact.grad.norm().clamp_min(1e-2)
        mine, theirs = ((p.grad - exact.grad).norm() / size for p in (ours, torchs))
        assert mine < max(1e-4, 4 * theirs), (key, float(mine), float(theirs))


@pytest.mark.parametrize("name", ["r18_half", pytest.param("y1", marks=pytest.mark.slow)])
def test_a_network_trains_by_the_kernels_from_stem_to_neck(name: str) -> None:
    interpreted(whole_network, name)


@pytest.mark.parametrize("name", ["r18", "mbf"])
def test_the_layers_of_a_network_keep_the_names_of_their_weights(name: str) -> None:
    network = backbones.build(name)
    names = list(network.state_dict())
    accelerate_(network, torch.device("cuda"), torch.float32)
    assert list(network.state_dict()) == names
    assert any(type(layer) in (NormedUnit, NormedLayers) for layer in network.modules())
