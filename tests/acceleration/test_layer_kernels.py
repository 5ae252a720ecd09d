"""The native layers are torch's: values, gradients and statistics against torch in float64."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from facescale.acceleration.conv import WIDE, Conv2d
from facescale.acceleration.sequence import in_sequence
from facescale.kernels.cpu import winograd
from facescale.kernels.cpu.build import missing

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))

LAST = torch.channels_last
GROUPED = "GeneratedBackwardFor_facescale_grouped_conv_defaultBackward"
shapes = st.tuples(st.integers(1, 4), st.integers(1, 40), st.integers(1, 9), st.integers(1, 9))
quickly = settings(max_examples=60, deadline=None)


def image(shape: tuple[int, ...], seed: int, offset: float = 0.0) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    drawn = torch.randn(shape, generator=random) + offset
    return drawn.contiguous(memory_format=LAST) if drawn.ndim == 4 else drawn


def gradients(forward: Callable[..., Tensor], inputs: list[Tensor]) -> list[Tensor]:
    """The output, and the gradients of all inputs for a random one of the output."""
    inputs = [x.detach().clone(memory_format=torch.preserve_format) for x in inputs]
    output = forward(*(x.requires_grad_() for x in inputs))
    upstream = image(tuple(output.shape), seed=-1).to(output.dtype)
    return [output.detach(), *torch.autograd.grad(output, inputs, upstream)]


def assert_alike(ours: list[Tensor], exact: list[Tensor], tolerance: float) -> None:
    """Within `tolerance` of the largest element, or of 1: a sum of such numbers may cancel."""
    for mine, truth in zip(ours, exact, strict=True):
        assert mine.dtype == torch.float32
        scale = max(1.0, float(truth.abs().max()))
        torch.testing.assert_close(mine.double(), truth, rtol=0, atol=tolerance * scale)


def put_(module: nn.Module, **parameters: Tensor) -> None:
    """Give a module tensors for parameters, which keep their place in the graph."""
    for name, tensor in parameters.items():
        delattr(module, name)
        setattr(module, name, tensor)


def is_chain(output: Tensor) -> bool:
    return type(output.grad_fn).__name__ == "_ChainBackward"


def norm_inputs(
    shape: tuple[int, ...], seed: int, slope: float | None, shortcut: bool, offset: float
) -> list[Tensor]:
    """Image, weight, bias and, where there are such, slope and shortcut."""
    channels = shape[1]
    inputs = [image(shape, seed, offset), image((channels,), seed + 1)]
    inputs.append(image((channels,), seed + 2))
    if slope is not None:
        inputs.append(torch.full((channels,), slope))
    return [*inputs, image(shape, seed + 3)] if shortcut else inputs


def layer_norm(has_slope: bool, momentum: float, buffers: list[Tensor]) -> Callable[..., Tensor]:
    """Our layers over given tensors."""

    def forward(x: Tensor, weight: Tensor, bias: Tensor, *rest: Tensor) -> Tensor:
        norm = nn.BatchNorm2d(x.shape[1], momentum=momentum)
        norm.running_mean, norm.running_var = buffers
        extra = list(rest)
        put_(norm, weight=weight, bias=bias)
        prelu = nn.PReLU(x.shape[1])
        if has_slope:
            put_(prelu, weight=extra.pop(0))
        output = in_sequence([norm, prelu] if has_slope else [norm], x, *extra)
        assert norm.num_batches_tracked == 1
        assert is_chain(output)
        return output

    return forward


def torchs_norm(has_slope: bool, momentum: float, buffers: list[Tensor]) -> Callable[..., Tensor]:
    def forward(x: Tensor, weight: Tensor, bias: Tensor, *rest: Tensor) -> Tensor:
        mean, variance = buffers
        output = nn.functional.batch_norm(x, mean, variance, weight, bias, True, momentum)
        extra = list(rest)
        if has_slope:
            output = nn.functional.prelu(output, extra.pop(0))
        return output + extra[0] if extra else output

    return forward


@quickly
@given(
    shape=shapes.filter(lambda s: s[0] * s[2] * s[3] > 8),
    seed=st.integers(0, 10**6),
    slope=st.sampled_from([None, 0.0, 0.25, -0.5, 1.5]),
    shortcut=st.booleans(),
    momentum=st.sampled_from([0.1, 0.0]),
)
def test_norm_prelu_and_shortcut_are_torchs_in_float64(
    shape: tuple[int, ...], seed: int, slope: float | None, shortcut: bool, momentum: float
) -> None:
    inputs = norm_inputs(shape, seed, slope, shortcut, offset=0.5)
    ours, exact = ([torch.zeros(shape[1]), torch.ones(shape[1])] for _ in range(2))
    exact = [b.double() for b in exact]
    mine = gradients(layer_norm(slope is not None, momentum, ours), inputs)
    doubles = [x.double() for x in inputs]
    truth = gradients(torchs_norm(slope is not None, momentum, exact), doubles)
    # 9 to 324 rows: where few are alike by chance, 1 / deviation magnifies their rounding
    assert_alike([*mine, *ours], [*truth, *exact], 2e-5)


@pytest.mark.parametrize("count", [1, 3])
def test_statistics_stay_exact_far_from_zero_and_over_many_rows(
    threads: Callable[[int], None], count: int
) -> None:
    threads(count)
    x = image((7, 19, 40, 30), seed=1, offset=3000.0)
    x[0] -= 3000.0  # the first rows are no guide to the rest
    x[:, 1] = 5.0  # nothing but one number
    norm = nn.BatchNorm2d(19, momentum=1.0)
    in_sequence([norm], x)
    variance, mean = torch.var_mean(x.double(), (0, 2, 3))
    assert norm.running_mean is not None
    assert norm.running_var is not None
    torch.testing.assert_close(norm.running_mean.double(), mean, rtol=1e-6, atol=0)
    torch.testing.assert_close(norm.running_var.double(), variance, rtol=1e-5, atol=0)


def test_what_is_not_a_number_stays_so() -> None:
    x = image((2, 5, 4, 4), seed=1)
    x[0, 3, 1, 1] = torch.nan
    spread = []
    for apply in (in_sequence, lambda layers, x: nn.Sequential(*layers)(x)):
        layers = [nn.BatchNorm2d(5), nn.PReLU(5)]
        y = apply(layers, x)
        y.sum().backward()
        spread.append([y, *(p.grad for layer in layers for p in layer.parameters())])
    for mine, truth in zip(*spread, strict=True):
        assert mine is not None
        assert truth is not None
        assert torch.equal(mine.isnan(), truth.isnan())


@quickly
@given(
    shape=shapes,
    seed=st.integers(0, 10**6),
    stride=st.sampled_from([1, 2]),
    group=st.sampled_from([1, 2]),
)
def test_grouped_convolutions_are_torchs_in_float64(
    shape: tuple[int, ...], seed: int, stride: int, group: int
) -> None:
    b, channels, *size = shape
    channels = (channels + 1) * group  # of a single group oneDNN makes a plain convolution
    weight = image((channels, group, 3, 3), seed + 1)
    x = image((b, channels, *size), seed)
    conv = Conv2d(channels, channels, 3, stride, 1, groups=channels // group, bias=False)

    def ours(x: Tensor, weight: Tensor) -> Tensor:
        put_(conv, weight=weight)
        output: Tensor = conv(x)
        assert type(output.grad_fn).__name__ == GROUPED
        return output

    def torchs(x: Tensor, weight: Tensor) -> Tensor:
        return nn.functional.conv2d(x, weight, None, stride, 1, groups=channels // group)

    doubles = [x.double(), weight.double()]
    # sums of at most 18 products forward, 324 backward
    assert_alike(gradients(ours, [x, weight]), gradients(torchs, doubles), 2e-6)


@settings(max_examples=25, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 4), st.integers(0, 20), st.integers(1, 9), st.integers(1, 9)),
    channels=st.integers(WIDE, WIDE + 20),
    seed=st.integers(0, 10**6),
    portion=st.sampled_from([1, winograd.PORTION]),
)
def test_wide_convolutions_are_torchs_in_float64(
    shape: tuple[int, ...], channels: int, seed: int, portion: int
) -> None:
    b, more, *size = shape
    x = image((b, WIDE + more, *size), seed)
    weight = image((channels, WIDE + more, 3, 3), seed + 1)
    conv = Conv2d(WIDE + more, channels, 3, padding=1, bias=False)

    def ours(x: Tensor, weight: Tensor) -> Tensor:
        put_(conv, weight=weight)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(winograd, "PORTION", portion)
            output: Tensor = conv(x)
        assert type(output.grad_fn).__name__ == "WinogradBackward"
        return output

    def torchs(x: Tensor, weight: Tensor) -> Tensor:
        return nn.functional.conv2d(x, weight, None, padding=1)

    doubles = [x.double(), weight.double()]
    # sums of 1,152 to 1,332 products, of which the largest sum is some 4 deviations
    assert_alike(gradients(ours, [x, weight]), gradients(torchs, doubles), 2e-6)


def refused(x: Any, module: nn.Module) -> bool:
    """Whether `module` leaves `x` to torch."""
    name = type(in_sequence([module], x).grad_fn).__name__
    return name not in ("_ChainBackward", GROUPED)


@pytest.mark.parametrize(
    "module", [nn.BatchNorm2d(6), Conv2d(6, 6, 3, padding=1, groups=6, bias=False)], ids=str
)
def test_all_else_is_left_to_torch(module: nn.Module) -> None:
    x = image((2, 6, 5, 4), seed=3)
    assert not refused(x, module)
    assert refused(x.contiguous(), module)
    assert refused(x[:, :, ::2], module)
    assert refused(x, module.eval())
    module.train()
    assert refused(x.double(), module.double())
    module.float()


@pytest.mark.parametrize(
    "options", [{"affine": False}, {"track_running_stats": False}, {"momentum": None}], ids=str
)
def test_unusual_norms_are_torchs(options: dict[str, Any]) -> None:
    x = image((2, 6, 5, 4), seed=3)
    ours = in_sequence([nn.BatchNorm2d(6, **options)], x)
    assert torch.equal(ours, nn.BatchNorm2d(6, **options)(x))


def test_one_sample_a_channel_is_torchs_error() -> None:
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        in_sequence([nn.BatchNorm2d(6)], image((1, 6, 1, 1), seed=0))
