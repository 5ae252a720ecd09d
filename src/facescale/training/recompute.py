"""Activation checkpointing: blocks of a network keep their input alone and are computed again."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache, partial
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from facescale.backbones import Backbone


def recompute_(network: Backbone) -> None:
    """Let the blocks of `network` compute their activations again in the backward pass.

    A block is an element of a `Sequential` or `ModuleList` that has layers inside: a residual unit,
    a bottleneck, a transformer's block. Gradients stay the same, with the same dropout and
    autocast; running statistics of BatchNorm take in each batch once. Names of weights stay. What
    else a block changes in its forward pass is changed twice.

    Raises:
        ValueError: The network has no such blocks.
    """
    blocks = list(_blocks(network))
    if not blocks:
        raise ValueError(
            f"train.recompute needs blocks, and backbone {network.name} has none: no Sequential or "
            "ModuleList whose elements have layers inside; leave it out, or take train.micro_batch"
        )
    for block in blocks:
        block.__class__ = _recomputed(type(block))  # type: ignore[arg-type]


def recomputes(network: nn.Module) -> bool:
    """Whether `recompute_` has changed the network."""
    return any(isinstance(module, Recomputed) for module in network.modules())


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The outermost blocks inside `module`, in the order of registration."""
    is_sequence = isinstance(module, nn.Sequential | nn.ModuleList)
    for child in module.children():
        if is_sequence and not isinstance(child, nn.Sequential | nn.ModuleList):
            if any(True for _ in child.children()):
                yield child
        else:
            yield from _blocks(child)


class Recomputed(nn.Module):
    """What stands before a block's own class: its forward pass under a checkpoint in training."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the block's own."""
        forward = super().forward
        if not (self.training and torch.is_grad_enabled()):
            return forward(*args, **kwargs)
        if not _norms(self):
            return checkpoint(forward, *args, use_reentrant=False, **kwargs)
        contexts = partial(again, self)
        return checkpoint(forward, *args, use_reentrant=False, context_fn=contexts, **kwargs)


@cache
def _recomputed(kind: type[nn.Module]) -> type[nn.Module]:
    """`kind` under a checkpoint. It adds no state, so an object can change to this class."""
    return type(f"Recomputed{kind.__name__}", (Recomputed, kind), {})


def again(network: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """For a first pass nothing; for the second one running statistics that stand still."""
    return nullcontext(), frozen_statistics(network)


@contextmanager
def frozen_statistics(network: nn.Module) -> Iterator[None]:
    """Inside the block, BatchNorm in training changes neither running statistics nor its count."""
    norms = _norms(network)
    kept = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0  # they are computed alike, and change nothing
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked = torch.zeros_like(norm.num_batches_tracked)
    try:
        yield
    finally:
        for norm, (momentum, tracked) in zip(norms, kept, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, tracked


def _norms(network: nn.Module) -> list[_BatchNorm]:
    return [m for m in network.modules() if isinstance(m, _BatchNorm)]
