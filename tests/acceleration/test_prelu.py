"""Our PReLU is torch's, gradient included."""

import pytest
import torch
from torch import Tensor, nn

from facescale.acceleration.prelu import PReLU
from facescale.kernels.cpu import prelu


def gradients(module: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    y = module(x)
    upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(2), dtype=y.dtype)
    to_x, to_slope = torch.autograd.grad(y, (x, *module.parameters()), upstream)
    return y.detach(), to_x, to_slope


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format], ids=str)
@pytest.mark.parametrize("block", [1, 100, 1 << 17])
def test_values_and_gradients_are_torchs(
    monkeypatch: pytest.MonkeyPatch, layout: torch.memory_format, block: int
) -> None:
    monkeypatch.setattr(prelu, "BLOCK", block)
    x = torch.randn(3, 7, 5, 4, dtype=torch.float64).to(memory_format=layout)
    x[0, 0, 0, 0] = 0.0
    ours, theirs = PReLU(7, init=0.3).double(), nn.PReLU(7, init=0.3).double()
    for mine, truth in zip(gradients(ours, x), gradients(theirs, x), strict=True):
        torch.testing.assert_close(mine, truth, rtol=1e-12, atol=1e-12)


def test_the_gradient_is_exact() -> None:
    layer = PReLU(3).double()
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64).to(memory_format=torch.channels_last)
    assert torch.autograd.gradcheck(layer, (x.requires_grad_(),))


def test_bfloat16_keeps_the_slope_in_float32() -> None:
    layer = PReLU(4)
    x = torch.randn(2, 4, 6, 6).to(memory_format=torch.channels_last).bfloat16()
    _, to_x, to_slope = gradients(layer, x)
    assert to_x.dtype == torch.bfloat16
    assert to_slope.dtype == torch.float32


def test_without_gradients_it_is_torchs_own() -> None:
    layer = PReLU(4).eval()
    x = torch.randn(2, 4, 6, 6).to(memory_format=torch.channels_last)
    with torch.inference_mode():
        assert torch.equal(layer(x), nn.functional.prelu(x, layer.weight))


def test_one_slope_for_all_channels_is_torchs() -> None:
    x = torch.randn(2, 4, 6, 6).to(memory_format=torch.channels_last)
    for mine, truth in zip(gradients(PReLU(), x), gradients(nn.PReLU(), x), strict=True):
        assert torch.equal(mine, truth)
