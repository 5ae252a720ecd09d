"""How class centres learn: SGD with momentum or AdamW, on the drawn rows alone.

A rule says which numbers are kept beside a weight (`parts`) and moves the rows of a block. Rows
that are not drawn keep weight, moments and count: momentum and decay wait for the next draw.
"""

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from facescale.distributed import Group

RuleName = Literal["sgd", "adamw"]


class Rule(Protocol):
    """One way to learn."""

    @property
    def parts(self) -> int:
        """Numbers kept of each weight, the weight included."""
        ...

    @property
    def counts(self) -> bool:
        """Whether each row counts the steps in which it was drawn."""
        ...

    def learn_(
        self,
        state: Tensor,
        counts: Tensor,
        gradient: tuple[Tensor, Tensor, Tensor],
        copies: Group,
        lr: float,
    ) -> None:
        """Move the rows of a block.

        Args:
            state: (rows, parts, dim): the weight, not normalised, then what `parts` says; moved.
            counts: (rows,) int32, the number of this draw of each row, from 1; (0,) if not kept.
            gradient: to_product (rows, B), batch (B, dim) and radial (rows,): the gradient of this
                copy is `to_product @ batch - radial * weight`.
            copies: Ranks with copies of these rows, whose gradients are summed.
            lr: Learning rate, greater than 0.
        """
        ...


@dataclass(frozen=True)
class SGD:
    """`torch.optim.SGD` of each row in the steps that draw it."""

    momentum: float
    weight_decay: float
    counts = False

    @property
    def parts(self) -> int:
        """The weight, and its momentum unless that is 0."""
        return 1 + (self.momentum > 0)

    def learn_(  # noqa: D102
        self,
        state: Tensor,
        counts: Tensor,
        gradient: tuple[Tensor, Tensor, Tensor],
        copies: Group,
        lr: float,
    ) -> None:
        to_product, batch, radial = gradient
        weight = state[:, 0]
        velocity = state[:, 1] if self.parts == 2 else torch.zeros_like(weight)
        # Added to the momentum where that lies, since each pass over rows x dim counts. As copies
        # add up their gradients, each brings its share of momentum and decay.
        velocity.addmm_(to_product, batch, beta=self.momentum / copies.size)
        decay = self.weight_decay / copies.size - radial
        velocity.addcmul_(decay[:, None], weight)
        copies.all_reduce_(velocity)
        weight.add_(velocity, alpha=-lr)


@dataclass(frozen=True)
class AdamW:
    """`torch.optim.AdamW` of each row in the steps that draw it.

    The moments of a row are corrected by the number of its own draws, and decay in those alone.
    Source: Loshchilov and Hutter, Decoupled weight decay regularization, ICLR 2019, algorithm 2.
    """

    weight_decay: float
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    parts, counts = 3, True

    def learn_(  # noqa: D102
        self,
        state: Tensor,
        counts: Tensor,
        gradient: tuple[Tensor, Tensor, Tensor],
        copies: Group,
        lr: float,
    ) -> None:
        to_product, batch, radial = gradient
        weight, first, second = state.unbind(dim=1)
        total = torch.addmm(radial[:, None] * -weight, to_product, batch)
        copies.all_reduce_(total)
        low, high = self.betas
        first.lerp_(total, 1.0 - low)
        second.mul_(high).addcmul_(total, total, value=1.0 - high)
        draws = counts.to(weight.dtype)[:, None]
        root = (second / (1.0 - high**draws)).sqrt_().add_(self.eps)
        weight.mul_(1.0 - lr * self.weight_decay)
        weight.addcdiv_(first / (1.0 - low**draws), root, value=-lr)


def make_rule(name: RuleName, momentum: float, weight_decay: float) -> Rule:
    """The rule of a name; AdamW has its own rates in place of `momentum`."""
    return AdamW(weight_decay) if name == "adamw" else SGD(momentum, weight_decay)
