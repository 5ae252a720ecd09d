"""CurricularFace: negatives harder than the target are weighted up, the more the later it is."""

import copy
import math

import torch
from torch import Tensor, nn

from facescale.head.margins.target import register_margin


@register_margin("curricularface")
class CurricularFace(nn.Module):
    """`cos(theta + m)` for the own class; `cosine * (t + cosine)` for a class that exceeds that.

    t is a running mean of the own cosines over the global batches, this one included, and starts at
    0: at first hard negatives count less than they would, at the end more. Other negatives keep
    their cosine. Where theta + m exceeds pi the own logit is `cosine - m * sin(m)`.

    Source: Huang et al., CurricularFace, CVPR 2020, equations 5 and 8 to 11, and the authors' code.

    Attributes:
        t: The running mean, (), float64.
    """

    t: Tensor

    def __init__(self, m: float = 0.5, t_alpha: float = 0.01) -> None:
        """`m` is the margin in radians, `t_alpha` the weight of a new batch in t."""
        super().__init__()
        if not 0.0 <= m < math.pi / 2:
            raise ValueError(f"CurricularFace's margin m must be in [0, pi / 2), got {m}")
        if not 0.0 < t_alpha <= 1.0:
            raise ValueError(f"CurricularFace's t_alpha must be in (0, 1], got {t_alpha}")
        self.m, self.t_alpha = m, t_alpha
        self.register_buffer("t", torch.zeros((), dtype=torch.float64))

    def extra_repr(self) -> str:
        """What `print` says."""
        return f"m={self.m}, t_alpha={self.t_alpha}"

    def observe_cosines_(self, cosines: Tensor) -> None:
        """Take the own cosines (B,) of the global batch into t; none leave it as it is."""
        if len(cosines):
            self.t.lerp_(cosines.double().clamp(-1.0, 1.0).mean(), self.t_alpha)

    def forward(self, cosine: Tensor, norm: Tensor) -> Tensor:
        """The cosine after the margin; (B,), (B,) to (B,). The norm does not count."""
        cosine = cosine.clamp(-1.0, 1.0)
        past = cosine - self.m * math.sin(self.m)
        return torch.where(cosine > -math.cos(self.m), self._turned(cosine), past)

    def others(self, cosine: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
        """What the softmax takes for cosines (classes, B) to others, and the slopes."""
        t = self.t.to(cosine.dtype)
        harder = cosine > self._turned(own.clamp(-1.0, 1.0))
        values = torch.where(harder, cosine * (t + cosine), cosine)
        return values, torch.where(harder, t + 2.0 * cosine, 1.0)

    def scaled(self, fraction: float) -> "CurricularFace":
        """The margin on its way from none (0.0) to all of it (1.0); t is shared."""
        other = copy.copy(self)
        other.m = fraction * self.m
        return other

    def _turned(self, cosine: Tensor) -> Tensor:
        """cos(theta + m)."""
        # The root has no derivative at 0, where theta is 0 or pi
        smallest = torch.finfo(cosine.dtype).eps
        sine = ((1.0 - cosine) * (1.0 + cosine)).clamp_min(smallest).sqrt()
        return cosine * math.cos(self.m) - sine * math.sin(self.m)
