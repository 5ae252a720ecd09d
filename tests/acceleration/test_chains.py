"""Chains of native layers are what the layers are one by one: against torch in float64."""

from collections.abc import Callable, Sequence
from copy import deepcopy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from facescale.acceleration import accelerate_
from facescale.acceleration.chain import chain_of
from facescale.acceleration.conv import Conv2d
from facescale.acceleration.sequence import in_sequence
from facescale.backbones.layers import Layers
from facescale.kernels.cpu.build import missing

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))

LAST = torch.channels_last


def image(*shape: int, seed: int) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=random).contiguous(memory_format=LAST)


def layers_of(spec: Sequence[tuple[str, bool]], channels: int) -> list[nn.Module]:
    """Convolutions by their names, each with its BatchNorm and, where so said, a PReLU."""
    layers: list[nn.Module] = []
    for name, has_prelu in spec:
        wide = channels + 16 if name == "wider" else channels
        convs = {
            "pointwise": lambda c=channels: nn.Conv2d(c, c, 1, bias=False),
            "wider": lambda c=channels: nn.Conv2d(c, c + 16, 1, bias=False),
            "depthwise": lambda c=channels: nn.Conv2d(c, c, 3, 1, 1, groups=c, bias=False),
            "pairs": lambda c=channels: nn.Conv2d(c, c, 3, 1, 1, groups=c // 2, bias=False),
            "halving": lambda c=channels: nn.Conv2d(c, c, 3, 2, 1, groups=c, bias=False),
        }
        channels = wide
        layers += [convs[name]()] if name in convs else []
        layers += [nn.BatchNorm2d(channels)]
        layers += [nn.PReLU(channels)] if has_prelu else []
    for layer in layers:
        layer.to(memory_format=LAST)  # type: ignore[call-overload]
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.weight)
            with torch.no_grad():  # a weight near 0 would magnify roundings behind the next norm
                layer.weight.add_(0.5 * layer.weight.sign())
            nn.init.normal_(layer.bias)
        if isinstance(layer, nn.PReLU):
            nn.init.uniform_(layer.weight, -0.3, 0.4)
    return layers


def nearest_to_a_kink(layers: Sequence[nn.Module], x: Tensor) -> float:
    """Smallest size of a number that a PReLU sees, by torch in float64."""
    value, nearest = x.double(), 1.0
    with torch.no_grad():
        for layer in (deepcopy(layer).double() for layer in layers):
            if isinstance(layer, nn.PReLU):
                nearest = min(nearest, float(value.abs().min()))
            value = layer(value)
    return nearest


def image_without_kinks(layers: Sequence[nn.Module], *shape: int, seed: int) -> Tensor:
    """An image of which no PReLU sees a number that float32's rounding could give another sign."""
    drawn = (image(*shape, seed=seed + 1000 * i) for i in range(200))
    return next(x for x in drawn if nearest_to_a_kink(layers, x) > 4e-6)


def learnt(layers: Sequence[nn.Module], x: Tensor, shortcut: Tensor | None) -> list[Tensor]:
    """Output, gradients of inputs and parameters, statistics; `shortcut` may be `x` itself."""
    own = x.clone(memory_format=torch.preserve_format).requires_grad_()
    added = own if shortcut is x else shortcut
    if added is not None and added is not own:
        added = added.clone(memory_format=torch.preserve_format).requires_grad_()
    output = in_sequence(layers, own, added)
    upstream = image(*output.shape, seed=9).to(output.dtype)
    output.backward(upstream)
    found = [output, own.grad, None if added is None else added.grad]
    for layer in layers:
        found += [p.grad for p in layer.parameters()]
        found += [buffer.double() for buffer in layer.buffers()]
    return [tensor.detach().double() for tensor in found if tensor is not None]


def assert_exact(layers: list[nn.Module], x: Tensor, shortcut: Tensor | None) -> None:
    doubles = [deepcopy(layer).double() for layer in layers]
    exact_x = x.double()
    added = shortcut if shortcut is None else shortcut.double()
    truth = learnt(doubles, exact_x, exact_x if shortcut is x else added)
    ours = learnt(deepcopy(layers), x, shortcut)
    for mine, exact in zip(ours, truth, strict=True):
        # of sums over up to 1,955 pixels some cancel altogether
        scale = max(1.0, float(exact.abs().max()))
        torch.testing.assert_close(mine, exact, rtol=0, atol=2e-4 * scale)


conv = st.sampled_from(["pointwise", "wider", "depthwise", "pairs", "halving"])
links = st.lists(st.tuples(conv, st.booleans()), min_size=1, max_size=3)


@settings(max_examples=60, deadline=None)
@given(
    first=st.sampled_from([None, False, True]),
    links=links,
    channels=st.sampled_from([2, 16, 26, 48, 80]),
    size=st.tuples(st.integers(4, 6), st.integers(9, 14), st.integers(9, 14)),
    added=st.sampled_from(["nothing", "another", "itself"]),
    seed=st.integers(0, 10**6),
)
def test_a_chain_is_its_layers_one_by_one(
    first: bool | None,
    links: list[tuple[str, bool]],
    channels: int,
    size: tuple[int, int, int],
    added: str,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    begins = [] if first is None else [("norm", first)]
    layers = layers_of([*begins, *links], channels)
    b, h, w = size
    x = image_without_kinks(layers, b, channels, h, w, seed=seed)
    whole = chain_of(layers, x)
    assert sum(map(len, whole)) == len(layers)
    shape: Sequence[int] = x.shape
    for link in whole:
        shape = link.size_of(shape)
    shortcut = {"nothing": None, "another": image(*shape, seed=seed + 1), "itself": x}[added]
    if added == "itself" and tuple(shape) != tuple(x.shape):
        shortcut = None
    assert_exact(layers, x, shortcut)


@pytest.mark.parametrize("count", [1, 3])
def test_a_chain_over_many_tiles_is_exact_and_alike_every_time(
    threads: Callable[[int], None], count: int
) -> None:
    threads(count)
    torch.manual_seed(0)
    layers = layers_of([("wider", True), ("depthwise", True), ("pointwise", False)], 64)
    x = image_without_kinks(layers, 5, 64, 17, 23, seed=1)
    assert_exact(layers, x, None)
    first, second = (learnt(deepcopy(layers), x, None) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_a_shortcut_that_the_kernels_do_not_know_is_added_behind() -> None:
    layers = layers_of([("pointwise", False)], 16)
    x = image(3, 16, 5, 4, seed=1)
    assert_exact(layers, x, image(3, 16, 5, 4, seed=2).contiguous())
    assert_exact(layers, x, image(3, 16, 1, 1, seed=2))


@pytest.mark.parametrize("last", [[], [nn.Flatten()]])
def test_a_backward_pass_under_autocast_is_the_same(last: list[nn.Module]) -> None:
    layers = [*layers_of([("pointwise", True), ("depthwise", False)], 16), *last]
    single = Conv2d(16, 16, 3, padding=1, groups=16, bias=False).to(memory_format=LAST)  # type: ignore[call-overload]
    found = []
    for enabled in (False, True):
        x = image(3, 16, 5, 4, seed=1).requires_grad_()
        loss = in_sequence(deepcopy(layers), single(x)).square().sum()
        with torch.autocast("cpu", enabled=enabled):
            loss.backward()
        found.append(x.grad)
    assert torch.equal(*found)  # type: ignore[arg-type]


def test_who_listens_to_a_layer_hears_it() -> None:
    layers = layers_of([("pointwise", True), ("depthwise", False)], 16)
    block = Layers(*layers)
    x = image(3, 16, 5, 4, seed=1)
    silent = in_sequence([block], x)
    seen = []
    for module in (block, *layers):
        module.register_forward_hook(lambda module, *_: seen.append(module))
    loud = in_sequence([block], x)
    assert seen == [*layers, block]
    torch.testing.assert_close(loud, silent, rtol=0, atol=1e-5)


def test_a_chain_ends_in_front_of_what_the_kernels_do_not_know() -> None:
    def length(layers: list[nn.Module], x: Tensor) -> int:
        return sum(map(len, chain_of(layers, x)))

    x = image(3, 16, 5, 4, seed=1)
    assert length([*layers_of([("pointwise", True)], 16), nn.Flatten()], x) == 3
    assert length([nn.Conv2d(16, 16, 1), nn.BatchNorm2d(16)], x) == 0  # a bias
    assert length([nn.Conv2d(16, 16, 1, bias=False), nn.PReLU(16)], x) == 0
    assert length([nn.BatchNorm2d(16), nn.PReLU()], x) == 1  # one slope for all channels
    assert length([nn.BatchNorm2d(16), type("Other", (nn.PReLU,), {})(16)], x) == 1
    assert length([nn.Conv2d(16, 8, 1, bias=False), nn.BatchNorm2d(16)], x) == 0
    assert length([nn.BatchNorm2d(8)], x) == 0
    assert length([nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8)], x) == 0
    around = nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False, padding_mode="reflect")
    assert length([around, nn.BatchNorm2d(16)], x) == 0
    frozen = layers_of([("pointwise", True), ("pointwise", True)], 16)
    frozen[4].eval()
    assert length(frozen, x) == 3
    one_number = layers_of([("halving", False)], 16)
    assert length(one_number, image(1, 16, 2, 2, seed=1)) == 0


class Swap(nn.Module):
    """Takes two tensors and gives them back in the other order."""

    def forward(self, pair: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return pair[1], pair[0]


def test_a_sequence_passes_on_more_than_images() -> None:
    network = nn.Sequential(Swap(), Swap(), Swap())
    accelerate_(network, torch.device("cpu"), torch.float32)
    one, other = torch.zeros(1), torch.ones(1)
    assert network((one, other)) == (other, one)
