"""BatchNorm over several ranks equals BatchNorm over the whole batch on one."""

from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from conftest import RunRanks
from facescale.distributed import Group, world_group
from facescale.training import sync_batchnorm
from facescale.training.sync_batchnorm import (
    SyncBatchNorm,
    synchronise_norms_,
)

CHANNELS = 5


def images(samples: int = 9) -> Tensor:
    random = torch.Generator().manual_seed(3)
    x = torch.randn(samples, CHANNELS, 3, 4, generator=random, dtype=torch.float64)
    return 2.0 * x + 7.0


def network() -> nn.Sequential:
    torch.manual_seed(0)
    convolution = nn.Conv2d(CHANNELS, CHANNELS, 1)
    net = nn.Sequential(
        nn.BatchNorm2d(CHANNELS, affine=False),
        *(convolution, nn.BatchNorm2d(CHANNELS), nn.Flatten(), nn.BatchNorm1d(60)),
    )
    for parameter in [*net[2].parameters(), *net[4].parameters()]:
        nn.init.uniform_(parameter)
    return net.double()


def learn(net: nn.Module, mine: slice) -> dict[str, Tensor]:
    """Output, gradients and statistics of a step on some of the images."""
    x = images()[mine].requires_grad_()
    output = net(x)
    output.pow(3).sum().backward()
    assert x.grad is not None
    gradients = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
    return {"output": output.detach(), "to_x": x.grad, **gradients, **dict(net.named_buffers())}


def synchronised(rank: int, sizes: list[int]) -> dict[str, Tensor]:
    net = network()
    synchronise_norms_(net, world_group())
    assert isinstance(net[4], SyncBatchNorm)
    first = sum(sizes[:rank])
    return learn(net, slice(first, first + sizes[rank]))


@pytest.mark.parametrize("sizes", [[5, 4], [3, 1, 5], [4, 0, 5]], ids=str)
def test_the_ranks_normalise_as_one(run_ranks: RunRanks, sizes: list[int]) -> None:
    truth = learn(network(), slice(None))
    answers = run_ranks(synchronised, len(sizes), sizes)
    for name, expected in truth.items():
        parts = [answer[name] for answer in answers]
        if name in ("output", "to_x"):
            parts = [torch.cat(parts)]
        elif "weight" in name or "bias" in name:
            parts = [torch.stack(parts).sum(0)]  # as DDP does
        for part in parts:
            torch.testing.assert_close(part, expected, rtol=1e-11, atol=1e-11, msg=name)


def test_one_rank_is_a_group_too() -> None:
    truth, net = network(), network()
    synchronise_norms_(net, Group())
    for name, value in learn(net, slice(None)).items():
        torch.testing.assert_close(value, learn(truth, slice(None))[name], rtol=1e-11, atol=1e-11)
        truth = network()
    assert list(net.state_dict()) == list(truth.state_dict())
    net.eval()
    truth.load_state_dict(net.state_dict())
    assert torch.equal(net(images()), truth.eval()(images()))


def in_float32(rank: int) -> tuple[dict[str, Tensor], list[torch.dtype]]:
    seen: list[torch.dtype] = []

    def of_sums(x: Tensor) -> torch.dtype:
        seen.append(x.dtype)
        return torch.float32

    with mock.patch.object(sync_batchnorm, "_type_of_sums", of_sums):
        net = nn.Sequential(nn.BatchNorm2d(CHANNELS))
        synchronise_norms_(net, world_group())
        x = (images(8).float() + 300.0)[4 * rank : 4 * rank + 4].requires_grad_()
        net(x).pow(3).sum().backward()
    assert x.grad is not None
    return {"to_x": x.grad, **dict(net.named_buffers())}, seen


def test_sums_in_float32_as_on_cuda_keep_their_digits_far_from_zero(run_ranks: RunRanks) -> None:
    norm = nn.BatchNorm2d(CHANNELS).double()
    x = (images(8) + 300.0).requires_grad_()
    norm(x).pow(3).sum().backward()
    answers = run_ranks(in_float32, 2)
    assert all(seen == [torch.float32] for _, seen in answers)
    found = torch.cat([answer["to_x"] for answer, _ in answers])
    assert x.grad is not None
    assert (found - x.grad).norm() / x.grad.norm() < 1e-4  # x itself has 3e-5 of a deviation
    for name, expected in norm.named_buffers():
        torch.testing.assert_close(
            answers[1][0][f"0.{name}"].double(), expected.double(), rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_low_precision_goes_in_and_out(dtype: torch.dtype) -> None:
    plain = nn.BatchNorm2d(CHANNELS)
    net = nn.Sequential(nn.BatchNorm2d(CHANNELS))
    synchronise_norms_(net, Group())
    x = images().to(dtype).requires_grad_()
    output = net(x)
    output.sum().backward()
    assert output.dtype == x.dtype
    assert x.grad is not None
    assert x.grad.dtype == dtype
    torch.testing.assert_close(output.float(), plain(x.float()), rtol=1e-2, atol=2e-2)


@pytest.mark.parametrize("options", [{"momentum": None}, {"track_running_stats": False}], ids=str)
def test_layers_without_running_statistics_are_refused(options: dict[str, Any]) -> None:
    net = nn.Sequential(nn.BatchNorm2d(CHANNELS, **options))
    with pytest.raises(ValueError, match=r"0: BatchNorm2d.* or set train.sync_batchnorm false"):
        synchronise_norms_(net, Group())
