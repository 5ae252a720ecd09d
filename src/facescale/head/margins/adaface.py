"""AdaFace: the margin of a sample depends on how its norm compares with those of recent batches."""

import math

import torch
from torch import Tensor, nn

from facescale.head.margins.target import register_margin

_EPS = 1e-3  # AdaFace's own: of angles (radians), of cosines, and added to the deviation
_NORMS = (1e-3, 100.0)  # norms are clipped to these first


@register_margin("adaface")
class AdaFace(nn.Module):
    """`cos(theta - m * z) - (m + m * z)`, where z in [-1, 1] tells how long the embedding is.

    `z = h * (norm - mean) / (std + 0.001)`, clipped: a proxy of image quality. A long embedding is
    pushed like CosFace, a short one less. Mean and deviation are running ones over the global
    batches, so they do not depend on the number of ranks. The norm gets no gradient.

    `theta - m * z` is clipped to [0.001, pi - 0.001], and the cosine to [-0.999, 0.999], as in the
    authors' code: beyond them the gradient is 0.

    Source: Kim et al., AdaFace, CVPR 2022, section 3.2.

    Attributes:
        mean: Running mean of the norms, (), float64.
        std: Running standard deviation (n - 1) of the norms, (), float64.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, m: float = 0.4, h: float = 0.333, t_alpha: float = 0.01) -> None:
        """`m` is the margin, `h` the effect of the norm, `t_alpha` the weight of a new batch."""
        super().__init__()
        if not 0.0 <= m < math.pi / 2:
            raise ValueError(f"AdaFace's margin m must be in [0, pi / 2), got {m}")
        if not 0.0 <= h < math.inf:
            raise ValueError(f"AdaFace's h must be 0 or more, got {h}")
        if not 0.0 < t_alpha <= 1.0:
            raise ValueError(f"AdaFace's t_alpha must be in (0, 1], got {t_alpha}")
        self.m, self.h, self.t_alpha = m, h, t_alpha
        self.register_buffer("mean", torch.tensor(20.0, dtype=torch.float64))
        self.register_buffer("std", torch.tensor(100.0, dtype=torch.float64))

    def extra_repr(self) -> str:
        """What `print` says."""
        return f"m={self.m}, h={self.h}, t_alpha={self.t_alpha}"

    def observe_(self, norms: Tensor) -> None:
        """Take the norms (B,) of the global batch into the running statistics.

        A batch of one has no deviation, and a norm may not be a number: what is not finite is kept
        as it was.
        """
        norms = norms.double().clamp(*_NORMS)
        mean = norms.mean()
        std = ((norms - mean).square().sum() / (max(len(norms) - 1, 0) or math.nan)).sqrt()
        for running, new in ((self.mean, mean), (self.std, std)):
            running.copy_(torch.where(new.isfinite(), running.lerp(new, self.t_alpha), running))

    def forward(self, cosine: Tensor, norm: Tensor) -> Tensor:
        """The cosine after the margin; (B,), (B,) to (B,)."""
        mean, std = self.mean.to(norm.dtype), self.std.to(norm.dtype)
        quality = self.h * (norm.detach().clamp(*_NORMS) - mean) / (std + _EPS)
        shift = self.m * quality.clamp(-1.0, 1.0)
        theta = torch.acos(cosine.clamp(-1.0 + _EPS, 1.0 - _EPS))
        return torch.cos((theta - shift).clamp(_EPS, math.pi - _EPS)) - (self.m + shift)
