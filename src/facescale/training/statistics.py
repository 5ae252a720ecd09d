"""Running statistics of BatchNorm: each rank has its own, evaluation and checkpoints their mean."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from facescale.distributed import Group


def running_statistics(module: nn.Module) -> list[Tensor]:
    """Running mean and variance of each BatchNorm, the buffers themselves."""
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm)]
    return [s for m in norms for s in (m.running_mean, m.running_var) if s is not None]


def read_statistics(module: nn.Module) -> Tensor:
    """A copy of all running statistics, concatenated, (n,)."""
    none = next(module.parameters(), torch.empty(0)).detach().new_empty(0)
    return joined(running_statistics(module), none)


def write_statistics_(module: nn.Module, values: Tensor) -> None:
    """Set all running statistics to `values`, (n,), as `read_statistics` returned them."""
    set_(running_statistics(module), values)


def joined(statistics: list[Tensor], none: Tensor) -> Tensor:
    """A copy of them, concatenated; `none` if there are none."""
    return torch.cat(statistics) if statistics else none


def set_(statistics: list[Tensor], values: Tensor) -> None:
    """Set them to `values`, (n,), as `joined` returned them."""
    if statistics:
        torch._foreach_copy_(statistics, values.split([s.numel() for s in statistics]))


@contextmanager
def averaged_statistics(module: nn.Module, world: Group) -> Iterator[Tensor]:
    """Set the running statistics to their mean over all ranks inside the block. A collective.

    Used for evaluation and for saving. Yields this rank's own statistics, (n,), and restores them
    after the block, so that training does not depend on how often it is evaluated.
    """
    own = read_statistics(module)
    write_statistics_(module, world.all_reduce_(own.clone()) / world.size)
    try:
        yield own
    finally:
        write_statistics_(module, own)
