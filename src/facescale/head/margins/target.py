"""What a margin is to the head, and the margins by name."""

import inspect
from collections.abc import Callable
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn


class TargetMargin(Protocol):
    """Maps the cosine between a sample and its own class centre to what the softmax takes for it.

    Any callable of this signature will do, a function too. It may also have:

    - `slope(cosine)`: the derivative by the cosine to train with, (B,). The norm then gets no
      gradient. Without `slope`, autograd differentiates by cosine and norm; no slope may then be
      infinite at a cosine of 1 or -1.
    - `observe_(norms)`: called once a training step, before the margin, with the norms (B,) of the
      whole global batch, the same on every rank. What the margin keeps of them has to be a buffer:
      a margin that is an `nn.Module` becomes a part of the head and of its `state_dict`.
    - `penalty(norm)`: what is added to the loss of each sample, (B,) to (B,), differentiable.
    - `scaled(fraction)`: the margin on its way from none (0.0) to all of it (1.0). Without it, the
      head goes straight from the plain cosine to the margin's.
    """

    def __call__(self, cosine: Tensor, norm: Tensor) -> Tensor:
        """The cosine after the margin; (B,), (B,) to (B,). `norm` is the embedding's length."""
        ...


Factory = TypeVar("Factory", bound=Callable[..., TargetMargin])
_FACTORIES: dict[str, Callable[..., TargetMargin]] = {}


def register_margin(name: str) -> Callable[[Factory], Factory]:
    """Decorates what makes a margin from its values, a function or class, to be found by `name`."""

    def register(factory: Factory) -> Factory:
        _FACTORIES[name] = factory
        return factory

    return register


def margin_names() -> list[str]:
    """The names of all margins."""
    return sorted(_FACTORIES)


def margin_values(name: str) -> list[str]:
    """The names of the values that a margin takes; ValueError for an unknown margin."""
    if name not in _FACTORIES:
        raise ValueError(f"margin {name!r} is not known; choose one of {', '.join(margin_names())}")
    return list(inspect.signature(_FACTORIES[name]).parameters)


def make_margin(name: str, **values: float | str) -> TargetMargin:
    """The margin of a name, made from its values; ValueError for an unknown name or value."""
    known = margin_values(name)
    for value in values:
        if value not in known:
            raise ValueError(f"margin {name} has no {value!r}; it takes {', '.join(known)}")
    return _FACTORIES[name](**values)


def scaled(margin: TargetMargin, fraction: float) -> TargetMargin:
    """`margin` on its way from none (0.0) to all of it (1.0)."""
    if fraction == 1.0:
        return margin
    own: Callable[[float], TargetMargin] | None = getattr(margin, "scaled", None)
    if own is not None:
        return own(fraction)
    return lambda cosine, norm: cosine + fraction * (margin(cosine, norm) - cosine)


def penalty(margin: TargetMargin, norm: Tensor) -> Tensor | float:
    """What `margin` adds to the losses of samples with these norms (b,), summed."""
    own: Callable[[Tensor], Tensor] | None = getattr(margin, "penalty", None)
    return 0.0 if own is None else own(norm).sum()


@torch.no_grad()
def observe_(margin: TargetMargin, norms: Tensor, bad: Tensor) -> None:
    """Show the norms (n,) of the global batch to a margin that asks for them, unless `bad`, ()."""
    observe: Callable[[Tensor], None] | None = getattr(margin, "observe_", None)
    if observe is None:
        return
    buffers = list(margin.buffers()) if isinstance(margin, nn.Module) else []
    before = [buffer.clone() for buffer in buffers]
    observe(norms)
    for buffer, kept in zip(buffers, before, strict=True):
        buffer.copy_(torch.where(bad, kept, buffer))


def value_and_slopes(
    margin: TargetMargin, cosine: Tensor, norm: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """`margin(cosine, norm)` and its derivatives by cosine and norm; all (B,)."""
    slope: Callable[[Tensor], Tensor] | None = getattr(margin, "slope", None)
    if slope is not None:
        return margin(cosine, norm), slope(cosine), torch.zeros_like(norm)
    with torch.enable_grad():
        cosine, norm = cosine.detach().requires_grad_(), norm.detach().requires_grad_()
        value = margin(cosine, norm)
        to_cosine, to_norm = torch.autograd.grad(
            value.sum(), (cosine, norm), allow_unused=True, materialize_grads=True
        )
    return value.detach(), to_cosine, to_norm
