"""The parameters of BatchNorm and PReLU, and their gradients. This file needs no triton."""

from typing import NamedTuple

from torch import Tensor


class Parameters(NamedTuple):
    """Those of BatchNorm and PReLU: (C,) each; one `slope` for all channels is (1,)."""

    weight: Tensor
    bias: Tensor
    slope: Tensor | None = None


def of_parameters(totals: Tensor, slope: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients of weight, bias and slope."""
    to_weight, to_bias, to_slope = totals
    if slope is None:
        return to_weight, to_bias, None
    whole = len(slope) == len(to_slope)
    return to_weight, to_bias, to_slope if whole else to_slope.sum(0, keepdim=True)
