"""The dense float64 truth for all head tests. It shares no code with the library.

Autograd differentiates the whole matrix of logits, and SGD moves the rows that took part.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def dense_loss(
    embeddings: Tensor,
    labels: Tensor,
    centres: Tensor,
    margin: tuple[float, float, float],
    scale: float,
    rows: Sequence[int],
) -> Tensor:
    """Mean margin softmax loss over the classes `rows` only; margin is (m1, m2, m3)."""
    m1, m2, m3 = margin
    unit = embeddings / embeddings.norm(dim=1, keepdim=True)
    chosen = centres[list(rows)]
    cosine = unit @ (chosen / chosen.norm(dim=1, keepdim=True)).T
    place = torch.tensor([list(rows).index(int(label)) for label in labels])
    own = torch.nn.functional.one_hot(place, len(rows)).bool()
    with_margin = torch.cos(m1 * torch.acos(cosine) + m2) - m3
    logits = scale * torch.where(own, with_margin, cosine)
    return torch.nn.functional.cross_entropy(logits, place)


def dense_step(
    embeddings: Tensor,
    labels: Tensor,
    weight: Tensor,
    velocity: Tensor,
    rows: Sequence[int],
    *,
    margin: tuple[float, float, float],
    scale: float,
    lr: float,
    momentum: float,
    weight_decay: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One step; returns loss, gradient of the embeddings, new weight and new velocity."""
    embeddings = embeddings.clone().requires_grad_()
    centres = weight.clone().requires_grad_()
    loss = dense_loss(embeddings, labels, centres, margin, scale, rows)
    to_embeddings, to_centres = torch.autograd.grad(loss, (embeddings, centres))
    taken = torch.zeros(len(weight), 1, dtype=torch.bool)
    taken[list(rows)] = True
    new_velocity = momentum * velocity + to_centres + weight_decay * weight
    velocity = torch.where(taken, new_velocity, velocity)
    weight = torch.where(taken, weight - lr * velocity, weight)
    return loss.detach(), to_embeddings, weight, velocity
