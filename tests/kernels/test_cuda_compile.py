"""The Triton kernels compiled ahead of time for sm_80 and sm_90: no spills, and they fit."""

from typing import Any

import pytest

from triton_process import compiled, needs_triton

pytestmark = needs_triton

NO_PRODUCT = ("draw_kernel", "join_kernel", "probability_kernel", "apply_kernel", "start_kernel")
STACK = {80: 8, 90: 0}
"""Bytes of a thread. Triton 3.7 keeps one value of a kernel for sm_80 there, Triton 3.6 none."""
CAPABILITIES = [pytest.param(80, marks=pytest.mark.slow), 90]


def faults(capability: int, row_format: str, precision: Any, sizes: dict[str, Any]) -> list[str]:
    """What is wrong with the kernels of a step of the head."""
    from facescale.kernels.cuda.catalogue import head_launches
    from facescale.kernels.cuda.resources import SHARED_LIMIT, compile_launch

    found, names = [], set()
    for launch in head_launches(row_format, precision, **sizes, capability=capability):
        name, use = launch.kernel.__name__, compile_launch(launch, capability)
        names.add(name)
        spills = use.stack > STACK[capability] or use.local
        if spills or use.shared > SHARED_LIMIT[capability]:
            found.append(f"{name}: {use}")
        if (use.tensor_core > 0) == (name in NO_PRODUCT):
            found.append(f"{name}: {use.tensor_core} tensor-core instructions")
    assert len(names) == 8, names
    return found


@pytest.mark.parametrize(
    ("row_format", "precision"), [("float32", "tf32x3"), ("bfloat16", "tf32"), ("int8", "bf16")]
)
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_kernels_of_the_head_spill_nothing_and_use_tensor_cores(
    capability: int, row_format: str, precision: str
) -> None:
    assert not compiled(faults, capability, row_format, precision, {})


def norm_faults(capability: int, dtype_name: str, channels: int) -> list[str]:
    """What is wrong with the kernels of BatchNorm."""
    import torch

    from facescale.kernels.cuda.catalogue import norm_launches
    from facescale.kernels.cuda.resources import SHARED_LIMIT, compile_launch

    seen = norm_launches(getattr(torch, dtype_name), channels)
    assert len({launch.kernel.__name__ for launch in seen}) == 5
    uses = [(launch.kernel.__name__, compile_launch(launch, capability)) for launch in seen]
    limit = SHARED_LIMIT[capability]
    return [f"{name}: {use}" for name, use in uses if use.stack or use.local or use.shared > limit]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_kernels_of_batch_norm_spill_nothing(capability: int, dtype: str) -> None:
    assert not compiled(norm_faults, capability, dtype, 64)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("channels", [16, 24, 192, 512])
@pytest.mark.parametrize("capability", [80, 90])
def test_kernels_of_batch_norm_fit_at_other_sizes(
    capability: int, channels: int, dtype: str
) -> None:
    assert not compiled(norm_faults, capability, dtype, channels)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["tf32x3", "tf32", "bf16"])
@pytest.mark.parametrize("row_format", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize(
    "sizes",
    [
        {},
        {"parts": 1, "gather": False},
        {"samples": 16},
        {"samples": 4096},
        {"samples": 50, "dim": 16},
        {"dim": 64},
    ],
    ids=str,
)
@pytest.mark.parametrize("capability", [80, 90])
def test_kernels_of_the_head_fit_at_other_sizes(
    capability: int, sizes: dict[str, Any], row_format: str, precision: str
) -> None:
    assert not compiled(faults, capability, row_format, precision, sizes)
