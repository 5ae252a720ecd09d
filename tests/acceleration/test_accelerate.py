"""An accelerated network is the plain one: weights, results, and all that can be done with it."""

from collections.abc import Callable
from contextlib import nullcontext
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from conftest import shortened
from facescale import backbones
from facescale.acceleration import accelerate as module
from facescale.acceleration import accelerate_
from facescale.acceleration.prelu import PReLU
from facescale.backbones import Backbone
from facescale.distributed import make_mesh
from facescale.kernels.cpu.build import missing
from facescale.training.micro_batch import MicroBatches
from facescale.training.sync_batchnorm import synchronise_norms_

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))

CPU = torch.device("cpu")
LAST = torch.channels_last


def pair(name: str, **choices: Any) -> tuple[Backbone, Backbone]:
    """A network with slopes of its own, and the same accelerated; both in training."""
    choices.setdefault("image_size", 28)
    random = torch.Generator().manual_seed(3)
    with shortened() if name in ("r18", "ir_se_50", "vit_t") else nullcontext():
        plain = backbones.build(name, **choices, generator=random).train()
    for layer in plain.modules():
        if isinstance(layer, nn.PReLU):
            nn.init.uniform_(layer.weight, -0.1, 0.4, generator=random)
    plain.to(memory_format=LAST)  # type: ignore[call-overload]
    fast = deepcopy(plain)
    accelerate_(fast, CPU, torch.float32)
    return plain, fast


def pixels(count: int = 6) -> Tensor:
    random = torch.Generator().manual_seed(1)
    drawn = torch.randint(256, (count, 3, 112, 112), dtype=torch.uint8, generator=random)
    return drawn.contiguous(memory_format=LAST)


def trained(network: nn.Module, steps: int = 2, lr: float = 1e-5) -> tuple[Tensor, Tensor]:
    """The embeddings of the first step, and all tensors after the last one."""
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr)
    seen = []
    for _ in range(steps):
        torch.manual_seed(0)  # of dropout
        embeddings = network(pixels())
        upstream = torch.Generator().manual_seed(2)
        embeddings.backward(torch.randn(embeddings.shape, generator=upstream))
        seen.append(embeddings.detach())
        optimizer.step()
        optimizer.zero_grad()
    return seen[0], torch.cat([t.flatten().double() for t in network.state_dict().values()])


def difference(one: Tensor, other: Tensor) -> float:
    return float((one.detach() - other.detach()).norm() / other.detach().norm())


def is_native(embeddings: Tensor) -> bool:
    """Whether a native operator is behind them."""
    nodes, seen = [embeddings.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is not None and node not in seen:
            seen.add(node)
            nodes += [before for before, _ in node.next_functions]
    return any(type(node).__name__ == "_ChainBackward" for node in seen)


FAST = ("r18_half", "r18", "ir_se_50", "mbf", "y1", "y2")
"""The others differ from one of these in the number of blocks or channels."""
NAMES = [
    name if name in FAST else pytest.param(name, marks=pytest.mark.slow)
    for name in backbones.NAMES
    if not name.startswith("vit")
]


@pytest.mark.parametrize("name", NAMES)
def test_every_network_learns_the_same_but_for_rounding(name: str) -> None:
    plain, fast = pair(name)
    before = plain.state_dict()
    assert list(fast.state_dict()) == list(before)
    start = torch.cat([t.flatten().double() for t in before.values()])
    truth, moved = trained(plain)
    answer, ours = trained(fast)
    # a hundred layers of float32, in which a rounding may flip the sign of what a PReLU sees
    assert difference(answer, truth) < 1e-3
    assert difference(ours - start, moved - start) < 0.05
    assert is_native(fast(pixels(2)))
    assert not is_native(plain(pixels(2)))


def test_a_vit_learns_the_same() -> None:
    plain, fast = pair("vit_t", image_size=112)  # no chain of layers that it could take
    truth, moved = trained(plain)
    answer, ours = trained(fast)
    assert difference(answer, truth) < 1e-5
    assert difference(ours, moved) < 1e-6


@pytest.mark.parametrize("name", ["y1", "mbf", "r18"])
def test_gradients_are_as_near_to_float64_as_torchs(
    threads: Callable[[int], None], name: str
) -> None:
    threads(2)
    plain, fast = pair(name, image_size=56, dropout=0.0 if name == "r18" else None)
    for network in (plain, fast):
        for layer in network.modules():
            if isinstance(layer, nn.PReLU):  # no kink, where roundings would flip signs by chance
                nn.init.ones_(layer.weight)
    upstream = torch.randn(6, plain.embedding_dim, generator=torch.Generator().manual_seed(2))
    found = []
    for network in (fast, fast, plain, deepcopy(plain).double()):
        network.zero_grad()
        embeddings = network(pixels())
        embeddings.backward(upstream.to(embeddings.dtype))
        grads = [p.grad for p in network.parameters() if p.grad is not None]
        found.append(torch.cat([grad.flatten().double() for grad in grads]))
    ours, again, theirs, truth = found
    assert torch.equal(ours, again)
    assert difference(ours, truth) < 1.5 * difference(theirs, truth)


def test_a_hook_is_called_and_changes_nothing_else() -> None:
    plain, fast = pair("y1")
    heard: list[str] = []
    for network in (plain, fast):
        for name, layer in network.named_modules():
            layer.register_forward_hook(lambda *_, name=name: heard.append(name))
    truth, answer = plain(pixels()), fast(pixels())
    half = len(heard) // 2
    assert sorted(heard[:half]) == sorted(heard[half:])
    assert difference(answer, truth) < 1e-4


def test_in_eval_mode_and_under_autocast_it_is_torchs_own() -> None:
    plain, fast = pair("y1")
    with torch.no_grad():
        assert torch.equal(fast.eval()(pixels()), plain.eval()(pixels()))
        plain.train()
        fast.train()
        with torch.autocast("cpu", torch.bfloat16):
            answer, truth = fast(pixels()), plain(pixels())
    assert difference(truth, plain(pixels()).detach()) > 0
    assert difference(answer, truth) < 0.02


def test_a_copy_learns_the_same() -> None:
    _, fast = pair("mbf")
    first, second = trained(deepcopy(fast)), trained(fast)
    assert torch.equal(first[1], second[1])


@pytest.mark.parametrize("name", ["y1", "r18_half"])
def test_in_micro_batches_too(name: str) -> None:
    plain, fast = pair(name)
    truth, answer = (trained(MicroBatches(network, 3)) for network in (plain, fast))
    assert difference(answer[0], truth[0]) < 1e-4
    assert difference(answer[1], truth[1]) < 1e-3


def _synchronised(rank: int) -> tuple[float, bool]:
    plain, fast = pair("y1")
    for network in (plain, fast):
        synchronise_norms_(network, make_mesh().world)
    return difference(fast(pixels()), plain(pixels())), is_native(fast(pixels()))


def test_synchronised_norms_are_left_to_themselves(run_ranks: Callable[..., list[Any]]) -> None:
    (error, is_chain), *_ = run_ranks(_synchronised, 2)
    assert error < 1e-4
    assert not is_chain


@pytest.mark.slow
@pytest.mark.parametrize("name", ["y1", "r18"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_it_can_be_compiled(name: str) -> None:
    _, fast = pair(name, dropout=0.0 if name == "r18" else None)
    compiled = deepcopy(fast)
    compiled.compile()
    truth, answer = trained(fast), trained(compiled)
    assert difference(answer[0], truth[0]) < 1e-4
    assert difference(answer[1], truth[1]) < 1e-3


def kinds(network: nn.Module) -> set[type[nn.Module]]:
    return {type(layer) for layer in network.modules()}


def test_elsewhere_the_layers_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    network = backbones.build("y1", image_size=28)
    plain = kinds(network)
    accelerate_(network, torch.device("mps"), torch.float32)
    assert kinds(network) == plain
    monkeypatch.setattr(module, "missing", lambda: "no compiler")
    accelerate_(network, CPU, torch.float32)
    assert kinds(network) - plain == {PReLU}


def test_sequences_of_a_network_that_is_not_ours_are_accelerated() -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8), nn.PReLU(8), nn.PReLU()]
    plain = nn.Sequential(nn.Conv2d(3, 8, 3), *layers, layers[-1]).to(memory_format=LAST)  # type: ignore[call-overload]
    fast = deepcopy(plain)
    accelerate_(fast, CPU, torch.float32)
    x = torch.randn(2, 3, 9, 9).contiguous(memory_format=LAST)
    assert is_native(fast(x))
    torch.testing.assert_close(fast(x), plain(x), rtol=1e-5, atol=1e-5)
