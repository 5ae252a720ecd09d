"""The margin: one formula, cos(m1 * theta + m2) - m3, of which ArcFace and CosFace are values."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from facescale.head.margins.target import register_margin

Gradient = Literal["exact", "straight-through"]


@dataclass(frozen=True)
class Margin:
    """What is asked of the cosine between a sample and its own class centre.

    `margin(cosine)` is cos(m1 * theta + m2) - m3 with theta = arccos(cosine), in radians.

    At cosine = +-1 the derivative of arccos is infinite, but what it multiplies, the gradient of
    the cosine along the unit sphere, goes to zero as fast. `slope` therefore bounds sin(theta)
    from below, and the product stays finite and small.

    Past m1 * theta + m2 = pi the logit rises again as the angle grows, and the exact gradient
    points away from the class centre. The formula is kept there, as in OneFlow and MXNet, so that a
    loss means the same in all systems. An angle of more than pi - m2 is needed for it (151 degrees
    for ArcFace's 0.5); centres and samples start near 90 degrees. gradient="straight-through" never
    changes its sign.

    Attributes:
        m1: Factor on the angle (SphereFace), > 0.
        m2: Added to the angle (ArcFace), radians, in [0, pi).
        m3: Taken from the cosine (CosFace), >= 0.
        gradient: "exact" differentiates the formula. "straight-through" takes the derivative
            with respect to the cosine as 1, as arcface_torch does.
    """

    m1: float = 1.0
    m2: float = 0.0
    m3: float = 0.0
    gradient: Gradient = "exact"

    def __post_init__(self) -> None:
        if not 0.0 < self.m1 < math.inf:
            raise ValueError(
                f"margin m1 must be greater than 0 (1 leaves the angle), got {self.m1}"
            )
        if not 0.0 <= self.m2 < math.pi:
            raise ValueError(f"margin m2 is an angle in [0, pi) radians, got {self.m2}")
        if not 0.0 <= self.m3 < math.inf:
            raise ValueError(f"margin m3 must be 0 or more, got {self.m3}")
        if self.gradient not in ("exact", "straight-through"):
            raise ValueError(
                f"margin gradient must be 'exact' or 'straight-through', got {self.gradient!r}"
            )

    def __call__(self, cosine: Tensor, norm: Tensor | None = None) -> Tensor:
        """The cosine after the margin; any shape. Rounding past +-1 is cut off; no norm counts."""
        if self.m1 == 1.0 and self.m2 == 0.0:
            return cosine - self.m3  # no arccos: as exact as the cosine itself
        return torch.cos(self.m1 * torch.acos(cosine.clamp(-1.0, 1.0)) + self.m2) - self.m3

    def slope(self, cosine: Tensor) -> Tensor:
        """The derivative of `self(cosine)` that training uses; the shape of `cosine`."""
        if self.gradient == "straight-through" or (self.m1 == 1.0 and self.m2 == 0.0):
            return torch.ones_like(cosine)
        cosine = cosine.clamp(-1.0, 1.0)
        theta = torch.acos(cosine)
        sine = torch.sqrt((1.0 - cosine) * (1.0 + cosine))
        smallest = math.sqrt(torch.finfo(cosine.dtype).eps)
        return self.m1 * torch.sin(self.m1 * theta + self.m2) / sine.clamp_min(smallest)

    def scaled(self, fraction: float) -> "Margin":
        """The margin on its way from none (0.0) to all of it (1.0)."""
        return Margin(
            1.0 + fraction * (self.m1 - 1.0), fraction * self.m2, fraction * self.m3, self.gradient
        )


@register_margin("arcface")
def arcface(m: float = 0.5, gradient: Gradient = "exact") -> Margin:
    """Additive angular margin, cos(theta + m). Source: Deng et al., ArcFace, CVPR 2019, eq. 3."""
    return Margin(m2=m, gradient=gradient)


@register_margin("cosface")
def cosface(m: float = 0.4, gradient: Gradient = "exact") -> Margin:
    """Additive cosine margin, cos(theta) - m. Source: Wang et al., CosFace, CVPR 2018, eq. 4."""
    return Margin(m3=m, gradient=gradient)


@register_margin("combined")
def combined(m1: float, m2: float, m3: float, gradient: Gradient = "exact") -> Margin:
    """All three at once, cos(m1 * theta + m2) - m3. Source: ArcFace, eq. 4."""
    return Margin(m1, m2, m3, gradient)
