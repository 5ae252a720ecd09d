"""The registry: backbones by name, and the function that builds one of them."""

import inspect
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

import torch

from facescale.backbones.backbone import IMAGE_SHAPE, Backbone

Builder = TypeVar("Builder", bound=Callable[..., Backbone])

_BUILDERS: dict[str, Callable[..., Backbone]] = {}

NAMES = _BUILDERS.keys()
"""All registered names, in the order of their registration; a live view."""


def register(name: str, **settings: object) -> Callable[[Builder], Builder]:
    """Let `build(name)` call the decorated class or function with `settings`.

    It takes those arguments of `build` that make sense for it, by name and with a default each.
    What `build` is asked for overrides `settings`. One that takes no `generator` draws its weights
    from torch's default generator, which `build` seeds for it.

    Raises:
        ValueError: The name is taken.
    """

    def add(builder: Builder) -> Builder:
        if name in _BUILDERS:
            raise ValueError(f"there is a backbone {name!r} already; choose another name")
        _BUILDERS[name] = partial(builder, **settings)
        return builder

    return add


def build(
    name: str,
    embedding_dim: int | None = None,
    neck: str | None = None,
    family: str | None = None,
    dropout: float | None = None,
    image_size: int = IMAGE_SHAPE[1],
    *,
    generator: torch.Generator | None = None,
) -> Backbone:
    """A backbone with fresh weights; None takes the network's default.

    Args:
        name: One of `NAMES`.
        embedding_dim: Length of an embedding.
        neck: `E`, `FC` or `GDC`.
        family: `mxnet` or `arcface_torch`: BatchNorm eps, pixel scale, initial weights.
        dropout: Probability to drop an activation in neck E, in [0, 1); None takes the family's.
        image_size: Images are averaged down to this size first: 112 leaves them, 56 costs a
            quarter, 28 a sixteenth.
        generator: Source of the weights; None takes torch's default one.

    Raises:
        ValueError: A name, neck or family is unknown, a number is out of its range, or the network
            does not take an argument.
    """
    require("backbone", name, NAMES)
    builder = _BUILDERS[name]
    choices = {
        "embedding_dim": embedding_dim,
        "neck": neck,
        "family": family,
        "dropout": dropout,
        "image_size": None if image_size == IMAGE_SHAPE[1] else image_size,
    }
    chosen = {key: value for key, value in choices.items() if value is not None}
    known = inspect.signature(builder).parameters
    for key, value in chosen.items():
        if key not in known:
            raise ValueError(f"backbone {name!r} has no {key}, got {value!r}; leave it out")
    if "generator" in known:
        backbone = builder(**chosen, generator=generator)
    else:
        with _default_generator(generator):
            backbone = builder(**chosen)
    backbone.spec = {"name": name, **backbone.spec}
    return backbone


def require(kind: str, value: str, allowed: Collection[str]) -> None:
    """Raise ValueError unless `value` is one of `allowed`."""
    if value not in allowed:
        raise ValueError(f"unknown {kind} {value!r}; choose one of {', '.join(allowed)}")


@contextmanager
def _default_generator(generator: torch.Generator | None) -> Iterator[None]:
    """Inside the block torch's default generator starts where `generator` stands, if given."""
    if generator is None:
        yield
        return
    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(generator.get_state())
        yield
