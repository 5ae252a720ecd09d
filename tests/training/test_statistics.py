"""Running statistics are averaged over the ranks for a while, and come back."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from conftest import RunRanks
from facescale.distributed import world_group
from facescale.training import build, train
from facescale.training.resume import resume_
from facescale.training.statistics import averaged_statistics, read_statistics
from runs import CPU, assert_same_model, run_of


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


def test_a_network_without_norms_has_none_where_it_is() -> None:
    network = nn.Linear(2, 2, device="meta")
    assert read_statistics(network).device == network.weight.device
    assert read_statistics(network).shape == (0,)
