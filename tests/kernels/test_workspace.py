"""Scratch memory shared by the layers of a network, alive as long as their backward passes."""

import weakref

import pytest
import torch

from facescale import backbones
from facescale.acceleration import accelerate_
from facescale.kernels.cpu.build import missing
from facescale.kernels.cpu.workspace import Workspace, shared_workspace, workspace


def test_a_workspace_grows_to_the_largest_request() -> None:
    mine = Workspace()
    first = mine.take(10)
    assert mine.take(5).data_ptr() == first.data_ptr()
    assert mine.take(20).shape == (20,)
    assert mine.take(10).untyped_storage().nbytes() == 80


def test_it_is_shared_only_where_that_was_asked_for() -> None:
    assert workspace() is not workspace()
    with shared_workspace():
        outer = workspace()
        assert workspace() is outer
        with shared_workspace():
            assert workspace() is not outer
        assert workspace() is outer
    assert workspace() is not outer


@pytest.mark.skipif(missing() is not None, reason=str(missing()))
def test_all_layers_of_a_step_share_one_which_goes_with_the_graph(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[weakref.ref[Workspace]] = []
    take = Workspace.take

    def taken(self: Workspace, count: int) -> torch.Tensor:
        seen.append(weakref.ref(self))
        return take(self, count)

    monkeypatch.setattr(Workspace, "take", taken)
    network = backbones.build("r18", image_size=28).train()
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    accelerate_(network, torch.device("cpu"), torch.float32)
    images = torch.zeros(4, 3, 112, 112, dtype=torch.uint8)
    loss = network(images.contiguous(memory_format=torch.channels_last)).sum()
    forward = len(seen)
    assert forward > 5
    loss.backward()
    assert len(seen) == 2 * forward
    first = seen[0]()
    assert first is not None
    assert all(other() is first for other in seen)
    del first, loss
    assert all(other() is None for other in seen)
