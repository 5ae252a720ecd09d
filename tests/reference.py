"""The dense float64 truth for all head tests. It shares no code with the library.

Autograd differentiates the whole matrix of logits, and SGD moves the rows that took part.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

DenseMargin = Callable[[Tensor, Tensor], Tensor]
"""Cosines (B, classes) and norms (B, 1) to the cosines after the margin, of whatever class."""


def dense_combined(m1: float, m2: float, m3: float) -> DenseMargin:
    """cos(m1 * theta + m2) - m3."""
    return lambda cosine, norm: torch.cos(m1 * torch.acos(cosine) + m2) - m3


def dense_adaface(mean: Tensor, std: Tensor, m: float, h: float) -> DenseMargin:
    """AdaFace, with statistics that the batch has already entered."""

    def margin(cosine: Tensor, norm: Tensor) -> Tensor:
        z = (h * (norm.detach() - mean) / (std + 1e-3)).clip(-1, 1)
        theta = cosine.clip(-0.999, 0.999).acos()
        return (theta - m * z).clip(1e-3, math.pi - 1e-3).cos() - m * (1 + z)

    return margin


def dense_magface(l_a: float, u_a: float, l_margin: float, u_margin: float) -> DenseMargin:
    """MagFace without its regulariser."""

    def margin(cosine: Tensor, norm: Tensor) -> Tensor:
        part = (norm.clip(l_a, u_a) - l_a) / (u_a - l_a)
        m = (1 - part) * l_margin + part * u_margin
        past = cosine - m * torch.sin(m)
        return torch.where(cosine > torch.cos(math.pi - m), torch.cos(cosine.acos() + m), past)

    return margin


DenseOthers = Callable[[Tensor, Tensor], Tensor]
"""Cosines to all classes (B, classes) and those to the own ones (B, 1) to what others count for."""


def dense_curricular(t: Tensor, m: float) -> tuple[DenseMargin, DenseOthers]:
    """CurricularFace, with a t that the batch has already entered."""

    def margin(cosine: Tensor, norm: Tensor) -> Tensor:
        theta = cosine.acos()
        return torch.where(theta + m < math.pi, (theta + m).cos(), cosine - m * math.sin(m))

    def others(cosine: Tensor, own: Tensor) -> Tensor:
        target = (own.detach().acos() + m).cos()
        return torch.where(cosine > target, cosine * (t + cosine), cosine)

    return margin, others


def dense_filter(above: float) -> DenseOthers:
    """Similar classes count as if they were at right angles."""
    return lambda cosine, own: torch.where(cosine > above, 0.0, cosine)


def dense_cosines(embeddings: Tensor, centres: Tensor, subcentres: int) -> Tensor:
    """Cosines (B, classes) to the nearest of the `subcentres` centres of each class."""
    unit = embeddings / embeddings.norm(dim=1, keepdim=True)
    every: Tensor = unit @ (centres / centres.norm(dim=1, keepdim=True)).T
    nearest: Tensor = every.reshape(len(every), -1, subcentres).amax(dim=2)
    return nearest


def dense_loss(
    embeddings: Tensor,
    labels: Tensor,
    centres: Tensor,
    margin: DenseMargin,
    scale: float,
    rows: Sequence[int],
    subcentres: int = 1,
    others: DenseOthers | None = None,
) -> Tensor:
    """Mean margin softmax loss over the classes `rows` only."""
    norm = embeddings.norm(dim=1, keepdim=True)
    chosen = centres.reshape(-1, subcentres, centres.shape[1])[list(rows)].flatten(0, 1)
    cosine = dense_cosines(embeddings, chosen, subcentres)
    place = torch.tensor([list(rows).index(int(label)) for label in labels])
    own = torch.nn.functional.one_hot(place, len(rows)).bool()
    rest = cosine if others is None else others(cosine, cosine[own][:, None])
    logits = scale * torch.where(own, margin(cosine, norm), rest)
    return torch.nn.functional.cross_entropy(logits, place)


def dense_step(
    embeddings: Tensor,
    labels: Tensor,
    weight: Tensor,
    velocity: Tensor,
    rows: Sequence[int],
    *,
    margin: DenseMargin,
    scale: float,
    lr: float,
    momentum: float,
    weight_decay: float,
    penalty: Callable[[Tensor], Tensor] = torch.zeros_like,
    subcentres: int = 1,
    others: DenseOthers | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One step; returns loss, gradient of the embeddings, new weight and new velocity.

    `penalty` of the norms (B,) is added to the samples' losses. `weight` and `velocity` have
    `subcentres` rows of each class.
    """
    embeddings = embeddings.clone().requires_grad_()
    centres = weight.clone().requires_grad_()
    loss = dense_loss(embeddings, labels, centres, margin, scale, rows, subcentres, others)
    loss = loss + penalty(embeddings.norm(dim=1)).mean()
    to_embeddings, to_centres = torch.autograd.grad(loss, (embeddings, centres))
    taken = torch.zeros(len(weight) // subcentres, 1, dtype=torch.bool)
    taken[list(rows)] = True
    taken = taken.repeat_interleave(subcentres, dim=0)
    new_velocity = momentum * velocity + to_centres + weight_decay * weight
    velocity = torch.where(taken, new_velocity, velocity)
    weight = torch.where(taken, weight - lr * velocity, weight)
    return loss.detach(), to_embeddings, weight, velocity
