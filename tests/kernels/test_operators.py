"""The native kernels as operators of torch: schemas, fake tensors, gradients, and memory."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from facescale import backbones
from facescale.acceleration import accelerate_
from facescale.kernels.cpu import between, norm, operators, pixels, prelu, winograd
from facescale.kernels.cpu.build import missing
from facescale.plan.ledger import Ledger

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))

LAST = torch.channels_last


def image(*shape: int, learns: bool = False) -> Tensor:
    return torch.randn(shape).contiguous(memory_format=LAST).requires_grad_(learns)


def a_norm(x: Tensor) -> list[Tensor]:
    """As the operators take it, with a PReLU behind."""
    channels = x.shape[1]
    return [
        torch.randn(channels),
        torch.randn(channels),
        norm.statistics(x.detach(), 1e-5),
        torch.full((channels,), 0.25),
    ]


def calls() -> list[tuple[Any, tuple[Any, ...]]]:
    """Every operator with inputs for it."""
    torch.manual_seed(0)
    x, g, wide = image(3, 6, 5, 4), image(3, 6, 5, 4), image(2, 128, 4, 4)
    before, behind = a_norm(x), a_norm(g)
    totals = norm.sums(g, behind, image(3, 6, 5, 4))
    point, pair, dense = image(6, 6, 1, 1), image(6, 2, 3, 3), image(128, 128, 3, 3)
    bytes_ = torch.randint(256, (3, 3, 5, 4), dtype=torch.uint8).contiguous(memory_format=LAST)
    return [
        (pixels.normalise, (bytes_, 127.5)),
        (pixels.mirror, (bytes_, torch.tensor([True, False, True]))),
        (norm.statistics, (x, 1e-5)),
        (norm.apply, (x, before, g)),
        (norm.sums, (x, before, g)),
        (norm.derivative, (x, before, totals, g)),
        (between.conv_between, (x, point, 1, before, 1e-5)),
        (between.conv_between, (x, pair, 2, [], 1e-5)),
        (between.conv_between_backward, (g, x, point, 1, before, g, behind, totals, g)),
        (between.grouped_conv, (image(3, 6, 5, 4, learns=True), pair, 2)),
        (between.grouped_conv_backward, (image(3, 6, 3, 2), x, pair, 2)),
        (prelu.prelu, (image(3, 6, 5, 4, learns=True), torch.full((6,), 0.3))),
        (prelu.prelu_backward, (g, x, torch.full((6,), 0.3))),
        (winograd.winograd, (wide, dense, torch.empty(winograd._scratch_size(wide, dense, 1)))),
        (
            winograd.winograd_backward,
            (wide, wide, dense, torch.empty(winograd._scratch_size(wide, dense, 2))),
        ),
    ]


@pytest.mark.parametrize("index", range(15))
def test_torch_knows_every_operator(index: int) -> None:
    operator, inputs = calls()[index]
    utilities = ["test_schema", "test_autograd_registration", "test_faketensor"]
    torch.library.opcheck(operator, inputs, test_utils=utilities)


def test_the_list_of_operators_is_whole() -> None:
    known = {operator.name() for operator, _ in calls()}
    defined = {name for name in torch._C._dispatch_get_all_op_names() if "facescale::" in name}
    assert known == defined
    assert all(name.startswith(operators.NAMESPACE) for name in known)


def test_images_of_another_layout_are_refused() -> None:
    with pytest.raises(AssertionError):
        norm.statistics(image(3, 6, 5, 4).contiguous(), 1e-5)


def test_the_operators_say_what_they_lack(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operators, "library", lambda name: None)
    monkeypatch.setattr(operators, "missing", lambda: "no C++ compiler; install g++")
    with pytest.raises(RuntimeError, match="needs compiled kernels: no C\\+\\+ compiler"):
        norm.statistics(image(3, 6, 5, 4), 1e-5)


def bytes_alive(name: str, mode: AbstractContextManager[Any]) -> tuple[int, int]:
    """Bytes alive when the embeddings are there, and the most at once, in a step."""
    with mode:
        network = backbones.build(name, image_size=28).train()
        for weight in network.parameters():
            if weight.ndim == 4:
                weight.data = weight.data.contiguous(memory_format=LAST)
        accelerate_(network, torch.device("cpu"), torch.float32)
    with mode, Ledger() as ledger:
        images = torch.zeros(4, 3, 112, 112, dtype=torch.uint8).contiguous(memory_format=LAST)
        embeddings = network(images)
        alive = ledger.live
        embeddings.sum().backward()
    return alive, ledger.peak


@pytest.mark.usefixtures("short_networks")
@pytest.mark.parametrize("name", ["y1", "r18"])
def test_one_fake_mode_after_another_and_then_real_tensors_need_the_same(name: str) -> None:
    modes: list[Callable[[], AbstractContextManager[Any]]] = [FakeTensorMode] * 2 + [nullcontext]
    first, second, real = (bytes_alive(name, mode()) for mode in modes)
    assert first == second == real
