"""MagFace: the margin grows with the norm of the embedding, which a regulariser makes long."""

import math

import torch
from torch import Tensor

from facescale.head.margins.target import register_margin


@register_margin("magface")
class MagFace:
    """`cos(theta + m)`, where m grows linearly with the norm.

    It is `l_margin` at norm `l_a` and `u_margin` at norm `u_a`. Norms are clipped to [l_a, u_a]
    first, in the margin and in the regulariser, so outside they get no gradient. Where theta + m
    exceeds pi the logit is `cosine - m * sin(m)`, which still falls as the angle grows.

    `lambda_g * (norm / u_a^2 + 1 / norm)` is added to the loss of each sample: it rewards long
    embeddings, which the margin makes expensive for samples that are hard.

    Source: Meng et al., MagFace, CVPR 2021, section 3.2. The defaults are the paper's, except for
    `l_margin`, which is that of the authors' code.
    """

    def __init__(
        self,
        l_a: float = 10.0,
        u_a: float = 110.0,
        l_margin: float = 0.45,
        u_margin: float = 0.8,
        lambda_g: float = 35.0,
    ) -> None:
        """`l_a`, `u_a` are norms, `l_margin`, `u_margin` radians, `lambda_g` a factor."""
        if not 0.0 < l_a < u_a < math.inf:
            raise ValueError(f"MagFace's norms must be 0 < l_a < u_a, got {l_a} and {u_a}")
        if not 0.0 <= l_margin <= u_margin < math.pi / 2:
            raise ValueError(
                "MagFace's margins must be 0 <= l_margin <= u_margin < pi / 2, got "
                f"{l_margin} and {u_margin}"
            )
        if not 0.0 <= lambda_g < math.inf:
            raise ValueError(f"MagFace's lambda_g must be 0 or more, got {lambda_g}")
        self.l_a, self.u_a = l_a, u_a
        self.l_margin, self.u_margin, self.lambda_g = l_margin, u_margin, lambda_g

    def __repr__(self) -> str:
        return (
            f"MagFace(l_a={self.l_a}, u_a={self.u_a}, l_margin={self.l_margin}, "
            f"u_margin={self.u_margin}, lambda_g={self.lambda_g})"
        )

    def __call__(self, cosine: Tensor, norm: Tensor) -> Tensor:
        """The cosine after the margin; (B,), (B,) to (B,)."""
        growth = (self.u_margin - self.l_margin) / (self.u_a - self.l_a)
        margin = self.l_margin + growth * (norm.clamp(self.l_a, self.u_a) - self.l_a)
        cosine = cosine.clamp(-1.0, 1.0)
        # The root has no derivative at 0, where theta is 0 or pi
        smallest = torch.finfo(cosine.dtype).eps
        sine = ((1.0 - cosine) * (1.0 + cosine)).clamp_min(smallest).sqrt()
        turned = cosine * margin.cos() - sine * margin.sin()
        return torch.where(cosine > -margin.cos(), turned, cosine - margin * margin.sin())

    def penalty(self, norm: Tensor) -> Tensor:
        """What is added to the loss of each sample; (B,) to (B,)."""
        norm = norm.clamp(self.l_a, self.u_a)
        return self.lambda_g * (norm / self.u_a**2 + 1.0 / norm)
