"""Process groups, the mesh of ranks, and the collectives that the library uses.

A group of one rank needs no process group: each collective is then the identity.
"""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel

from facescale.files import said_of
from facescale.rendezvous import is_lost, join, leave

_SHARED = (FileNotFoundError, OSError, ValueError)  # errors that one rank tells the others


@dataclass
class Traffic:
    """Calls and bytes sent by this rank, by name of the collective.

    Bytes are the lower bound of any algorithm. With n bytes on each of p ranks, an all-reduce sends
    2 n (p - 1) / p, an all-gather n (p - 1), and a reduce-scatter n (p - 1) / p.
    """

    calls: Counter[str] = field(default_factory=Counter)
    sent: Counter[str] = field(default_factory=Counter)

    def add_(self, name: str, sent: int) -> None:
        """Count a call."""
        self.calls[name] += 1
        self.sent[name] += sent


@dataclass(frozen=True)
class Group:
    """A set of ranks that run collectives together; `handle` is None for a group of one."""

    rank: int = 0
    size: int = 1
    handle: dist.ProcessGroup | None = field(default=None, repr=False)
    traffic: Traffic = field(default_factory=Traffic, repr=False, compare=False)

    def all_reduce_(self, tensor: Tensor) -> Tensor:
        """Sum `tensor` over the group, in place."""
        if self.size > 1:
            self.traffic.add_("all_reduce", 2 * tensor.nbytes * (self.size - 1) // self.size)
            dense = tensor.contiguous()
            dist.all_reduce(dense, group=self.handle)
            if dense is not tensor:
                tensor.copy_(dense)
        return tensor

    def all_gather(self, tensor: Tensor) -> Tensor:
        """Stack the ranks' tensors: (...) becomes (size, ...)."""
        if self.size == 1:
            return tensor.unsqueeze(0)
        self.traffic.add_("all_gather", tensor.nbytes * (self.size - 1))
        gathered = tensor.new_empty((self.size * tensor.shape[0], *tensor.shape[1:]))
        gather = _collective("all_gather_single", "all_gather_into_tensor")
        gather(gathered, tensor.contiguous(), group=self.handle)
        return gathered.view(self.size, *tensor.shape)

    def reduce_scatter(self, tensor: Tensor) -> Tensor:
        """Sum over the group and keep this rank's part: (size, ...) becomes (...)."""
        if self.size == 1:
            return tensor[0]
        self.traffic.add_("reduce_scatter", tensor.nbytes * (self.size - 1) // self.size)
        part = torch.empty_like(tensor[0])
        scatter = _collective("reduce_scatter_single", "reduce_scatter_tensor")
        scatter(part, tensor.flatten(0, 1), group=self.handle)
        return part

    def sum_bucket(
        self,
        bucket: dist.GradBucket,  # type: ignore[name-defined]
    ) -> torch.futures.Future[Tensor]:
        """DDP communication hook: sum a bucket of gradients, which DDP would average."""
        gradients: Tensor = bucket.buffer()
        self.traffic.add_("bucket", 2 * gradients.nbytes * (self.size - 1) // self.size)
        work = dist.all_reduce(gradients, group=self.handle, async_op=True)
        assert work is not None

        def buffer(done: torch.futures.Future[list[Tensor]]) -> Tensor:
            done.value()  # raises what went wrong
            return gradients

        summed: torch.futures.Future[Tensor] = work.get_future().then(buffer)
        return summed

    def gather_rows(self, rows: Tensor) -> Tensor:
        """Concatenate the ranks' rows (n_r, ...), as many as each has, in rank order."""
        counts = self.all_gather(torch.tensor([len(rows)], device=rows.device)).flatten().tolist()
        padded = rows.new_zeros((max(counts), *rows.shape[1:]))
        padded[: len(rows)] = rows
        gathered = self.all_gather(padded)
        return torch.cat([block[:n] for block, n in zip(gathered, counts, strict=True)])

    def gather_texts(self, text: str) -> list[str]:
        """The ranks' texts, in rank order; not counted in `traffic`, so for rare use only."""
        if self.size == 1:
            return [text]
        said = [""] * self.size
        dist.all_gather_object(said, text, group=self.handle)
        return said

    @contextmanager
    def all_or_none(self) -> Iterator[list[str]]:
        """Raise the OSError or ValueError of any rank on all ranks. The block has no collective.

        Yields an empty list; after the block it holds what the ranks appended to it, in rank order.
        A collective, not counted in `traffic`.
        """
        said: list[str] = []
        try:
            yield said
            failure = None
        except _SHARED as error:
            failure = next(n for n, kind in enumerate(_SHARED) if isinstance(error, kind))
            said[:] = [said_of(error)]
        answers = map(json.loads, self.gather_texts(json.dumps([failure, said])))
        said.clear()
        for failure, texts in answers:
            if failure is not None:
                raise _SHARED[failure](texts[0])
            said += texts


def _collective(name: str, old_name: str) -> Callable[..., Any]:
    """A function of `torch.distributed`, under its name since torch 2.13 or the one before."""
    return getattr(dist, name, None) or getattr(dist, old_name)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Mesh:
    """All ranks as ("replicate", "shard"): shard groups share the classes, replicates copy."""

    world: Group = field(default_factory=Group)
    replicate: Group = field(default_factory=Group)
    shard: Group = field(default_factory=Group)
    device_mesh: Any = field(default=None, repr=False)


def make_mesh(shards: int | None = None, device_type: str = "cpu") -> Mesh:
    """Arrange all ranks as (world // shards, shards); None means one shard per rank.

    Without a process group the world is this process alone.

    Raises:
        ValueError: `shards` does not divide the number of ranks.
    """
    size = world_group().size
    shards = size if shards is None else shards
    if shards < 1 or size % shards:
        divisors = [n for n in range(1, size + 1) if size % n == 0]
        raise ValueError(
            f"head.shards is {shards}, but must divide the number of ranks ({size}): "
            f"choose one of {divisors}"
        )
    if size == 1:
        return Mesh()
    grid = init_device_mesh(
        device_type, (size // shards, shards), mesh_dim_names=("replicate", "shard")
    )
    replicate, shard = (
        Group(grid.get_local_rank(axis), grid.size(i), grid.get_group(axis))
        for i, axis in enumerate(("replicate", "shard"))
    )
    return Mesh(world_group(), replicate, shard, grid)


def world_group() -> Group:
    """All ranks; this process alone if there is no process group."""
    if not dist.is_initialized():
        return Group()
    return Group(dist.get_rank(), dist.get_world_size(), dist.group.WORLD)


def shard_range(num_classes: int, shards: int, index: int) -> range:
    """Classes of shard `index`: ceil(num_classes / shards) each, fewer or none in the last shards.

    The same rule as MXNet's Partial FC, `torch.chunk` and `DTensor`.
    """
    width = -(-num_classes // shards)
    return range(min(index * width, num_classes), min((index + 1) * width, num_classes))


def agree(text: str) -> str:
    """Broadcast `text` from rank 0, for a decision that one rank must take, such as a folder."""
    said = [text]
    if dist.is_initialized():
        dist.broadcast_object_list(said, src=0)
    return said[0]


def device_type(chosen: str) -> str:
    """Resolve "cpu", "cuda" or "auto" (CUDA if available) to a device type."""
    return ("cuda" if torch.cuda.is_available() else "cpu") if chosen == "auto" else chosen


@contextmanager
def processes(device: str = "auto", timeout_s: float = 600.0) -> Iterator[torch.device]:
    """Initialise the process group under torchrun; yields this rank's device.

    Without torchrun there is one process and no process group. A nested block does nothing.

    `device` is "cpu" (gloo), "cuda" (NCCL) or "auto" (CUDA if available); a collective fails after
    `timeout_s` seconds.

    Raises:
        ValueError: "cuda" was asked for and torch finds no CUDA device, or none for this rank.
        ConnectionError: The other ranks ended or cannot be reached.
    """
    device = device_type(device)
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device is cuda, but torch sees no CUDA device; use --device cpu")
    here = torch.device(device)
    if here.type == "cuda":  # CUDA only
        here = torch.device(device, _local_card())
        torch.cuda.set_device(here)
    launched = int(os.environ.get("WORLD_SIZE", 1)) > 1 and not dist.is_initialized()
    failed = True
    try:
        if launched:
            join(here.type, timeout_s)
        yield here
        failed = False
    except RuntimeError as error:
        if not (launched and is_lost(error)):
            raise
        if "EADDRINUSE" in str(error):
            port = f"port {os.environ.get('MASTER_PORT')} of this host is in use by another process"
            raise OSError(f"{port}; set MASTER_PORT or --master-port to another") from error
        why = f"the other ranks are gone or out of reach ({str(error).splitlines()[0]})"
        raise ConnectionError(f"{why}; --resume continues from the last checkpoint") from error
    finally:
        if launched and dist.is_initialized():
            leave(failed)


def _local_card() -> int:
    """The number of this rank's GPU on its host; ValueError where there is none."""
    rank, cards = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
    if rank >= cards:
        raise ValueError(
            f"this is process {rank + 1} of this host, and torch sees {cards} CUDA devices here; "
            f"start {cards} processes a host, or use --device cpu"
        )
    return rank


def replicate(module: nn.Module, world: Group) -> nn.Module:
    """Wrap `module` in DDP; gradients are summed over `world` during the backward pass.

    Rank 0's buffers are broadcast here, but no more: each rank keeps its own running statistics.
    """
    if world.size == 1:
        return module
    ddp = DistributedDataParallel(module, process_group=world.handle, gradient_as_bucket_view=True)
    # The constructor's argument has another name since torch 2.13, the attribute has not.
    ddp.broadcast_buffers = False
    ddp.register_comm_hook(world, Group.sum_bucket)
    return ddp
