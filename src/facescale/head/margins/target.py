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
    - `others(cosine, own)`: what the softmax takes for the cosines to other classes, (classes, B),
      where those to the own classes are `own`, (B,); it returns values and slopes, both
      (classes, B). The head then computes the own cosines in a pass of their own, first.
    - `observe_cosines_(cosines)`: called as `observe_`, with the cosines to the own classes (B,),
      before the margin; of a margin with `others` alone.
    - `penalty(norm)`: what is added to the loss of each sample, (B,) to (B,), differentiable.
    - `scaled(fraction)`: the margin on its way from none (0.0) to all of it (1.0). Without it, the
      head goes straight from the plain cosine to the margin's.
    """

    def __call__(self, cosine: Tensor, norm: Tensor) -> Tensor:
        """The cosine after the margin; (B,), (B,) to (B,). `norm` is the embedding's length."""
        ...


Others = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Cosines to other classes (classes, B) to what the softmax takes for them, and the slopes."""

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
    _show_(margin, "observe_", norms, bad)


@torch.no_grad()
def observe_cosines_(margin: TargetMargin, cosines: Tensor) -> None:
    """Show the own cosines (n,) of the global batch to a margin that asks for them.

    What it keeps stays as it was where one of them is not finite.
    """
    _show_(margin, "observe_cosines_", cosines, ~cosines.isfinite().all())


def _show_(margin: TargetMargin, method: str, numbers: Tensor, bad: Tensor) -> None:
    observe: Callable[[Tensor], None] | None = getattr(margin, method, None)
    if observe is None:
        return
    buffers = list(margin.buffers()) if isinstance(margin, nn.Module) else []
    before = [buffer.clone() for buffer in buffers]
    observe(numbers)
    for buffer, kept in zip(buffers, before, strict=True):
        buffer.copy_(torch.where(bad, kept, buffer))


def reweights(margin: TargetMargin) -> bool:
    """Whether the margin changes the cosines to other classes."""
    return hasattr(margin, "others")


def others_of(
    margin: TargetMargin, own: Tensor | None, filter_above: float | None
) -> Others | None:
    """What `margin` and the filter make of cosines to other classes; None: nothing.

    Args:
        margin: As it is in this step.
        own: The cosines to the own classes, (B,); of a margin with `others` alone.
        filter_above: Cosines above it become 0 and get no gradient; the margin sees them so.
    """
    asks: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None
    asks = getattr(margin, "others", None)
    if asks is None and filter_above is None:
        return None

    def others(cosine: Tensor) -> tuple[Tensor, Tensor]:
        kept = torch.ones_like(cosine)
        if filter_above is not None:
            kept = (cosine <= filter_above).to(cosine.dtype)
            cosine = cosine * kept
        if asks is None:
            return cosine, kept
        assert own is not None
        values, slopes = asks(cosine, own)
        return values, slopes * kept

    return others


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
