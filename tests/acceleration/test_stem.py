"""The first convolution on a card has channels of zeros, and the numbers of the plain one."""

from copy import deepcopy
from unittest import mock

import pytest
import torch
from torch import nn

from facescale import backbones
from facescale.acceleration import accelerate_, stem
from facescale.acceleration.stem import Conv2d


def pair() -> tuple[nn.Conv2d, nn.Conv2d]:
    torch.manual_seed(0)
    plain = nn.Conv2d(3, 8, 3, 2, padding=1).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    padded = deepcopy(plain)
    padded.__class__ = Conv2d
    return plain, padded


def image() -> torch.Tensor:
    x = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    return x.contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("dtype", "rounds", "channels"),
    [
        (torch.bfloat16, False, 8),
        (torch.float16, False, 8),
        (torch.float32, True, 4),
        (torch.float32, False, 3),
    ],
    ids=str,
)
def test_results_and_gradients_stay(dtype: torch.dtype, rounds: bool, channels: int) -> None:
    answers, shapes = [], []
    conv2d = torch.nn.functional.conv2d
    with (
        mock.patch.object(stem, "runs_on", return_value=True),
        mock.patch.object(stem, "_rounds", return_value=rounds),
        mock.patch.object(stem, "conv2d", wraps=conv2d) as seen,
    ):
        for conv in pair():
            x = image().requires_grad_()
            with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
                y = conv(x)
            y.float().square().sum().backward()
            answers.append((y.detach(), x.grad, conv.weight.grad, conv.bias.grad))  # type: ignore[union-attr]
        shapes = [call.args[0].shape[1] for call in seen.call_args_list]
    assert shapes == ([channels] if channels > 3 else [])
    for one, other in zip(*answers, strict=True):
        assert one is not None
        assert one.dtype == other.dtype
        tolerance = 1e-5 if dtype == torch.float32 else 2e-2
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


def test_elsewhere_and_in_another_layout_it_is_the_plain_one() -> None:
    plain, padded = pair()
    with mock.patch.object(stem, "conv2d", side_effect=AssertionError):
        torch.testing.assert_close(padded(image()), plain(image()))
        runs = mock.patch.object(stem, "runs_on", return_value=True)
        with runs, torch.autocast("cpu", torch.bfloat16):
            padded(image().contiguous())


def test_only_the_first_convolution_is_another_and_names_stay() -> None:
    network = backbones.build("r18_half")
    names = list(network.state_dict())
    accelerate_(network, torch.device("cuda"), torch.float32)
    assert list(network.state_dict()) == names
    stems = [name for name, layer in network.named_modules() if type(layer) is Conv2d]
    assert stems == ["conv1"]
