"""BatchNorm over several ranks equals BatchNorm over the whole batch on one."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from conftest import RunRanks
from facescale.checkpoint.statistics import (
    SyncBatchNorm,
    averaged_statistics,
    read_statistics,
    synchronise_norms_,
)
from facescale.distributed import Group, world_group
from facescale.training import build, train
from facescale.training.resume import resume_
from runs import CPU, assert_same_model, run_of

CHANNELS = 5


def images(samples: int = 9) -> Tensor:
    random = torch.Generator().manual_seed(3)
    x = torch.randn(samples, CHANNELS, 3, 4, generator=random, dtype=torch.float64)
    return 2.0 * x + 7.0


def network() -> nn.Sequential:
    torch.manual_seed(0)
    convolution = nn.Conv2d(CHANNELS, CHANNELS, 1)
    net = nn.Sequential(convolution, nn.BatchNorm2d(CHANNELS), nn.Flatten(), nn.BatchNorm1d(60))
    for parameter in [*net[1].parameters(), *net[3].parameters()]:
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
    assert isinstance(net[3], SyncBatchNorm)
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


def averaged(rank: int) -> tuple[Tensor, Tensor]:
    norm = nn.BatchNorm1d(2)
    assert norm.running_mean is not None
    norm.running_mean.fill_(rank)
    with averaged_statistics(norm, world_group()):
        inside = norm.running_mean.clone()
    return inside, norm.running_mean


def test_running_statistics_are_averaged_for_a_while(run_ranks: RunRanks) -> None:
    for rank, (inside, after) in enumerate(run_ranks(averaged, 3)):
        assert inside.tolist() == [1.0, 1.0]
        assert after.tolist() == [rank, rank]


def trained(rank: int, folder: Path, lengths: tuple[int, ...]) -> Tensor:
    """A rank's own statistics after a run that was given more and more steps."""
    for steps in lengths:
        train(run_of(steps), folder, resume=True)
    state = build(run_of(lengths[-1]), CPU)
    resume_(state, folder)
    return read_statistics(state.backbone)


@pytest.mark.usefixtures("tiny_y1")
def test_a_run_that_was_given_more_steps_equals_one_planned_longer(
    run_ranks: RunRanks, tmp_path: Path
) -> None:
    planned = run_ranks(trained, 2, tmp_path / "planned", (4,))
    longer = run_ranks(trained, 2, tmp_path / "longer", (2, 4))
    for one, other in zip(planned, longer, strict=True):
        assert torch.equal(one, other)
    assert_same_model(tmp_path / "planned", tmp_path / "longer")
    assert not torch.equal(*planned)  # each rank has seen other samples
    model = load_file(tmp_path / "planned/model.safetensors")
    means = [value.flatten() for name, value in model.items() if ".running_" in name]
    assert torch.equal(torch.cat(means), (planned[0] + planned[1]) / 2)
