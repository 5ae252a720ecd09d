"""Who is here, how the ranks are arranged, and the few collectives they speak with.

A group of one rank needs no process group: each collective is then the identity, so that nothing
above this file asks how many ranks there are.
"""

import os
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from hashlib import sha256
from typing import Any
from uuid import uuid4

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel


@dataclass
class Traffic:
    """What the collectives of a group have cost so far, by name: calls, and bytes a rank sent.

    Bytes are those that no algorithm can do without: of n bytes on each of p ranks a sum over all
    sends 2 n (p - 1) / p, a gather n (p - 1), and a scattered sum n (p - 1) / p.
    """

    calls: Counter[str] = field(default_factory=Counter)
    sent: Counter[str] = field(default_factory=Counter)

    def add_(self, name: str, sent: int) -> None:
        """Count a call."""
        self.calls[name] += 1
        self.sent[name] += sent


@dataclass(frozen=True)
class Group:
    """Some ranks that exchange tensors of one shape; `handle` is None for a group of one."""

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
        dist.all_gather_single(gathered, tensor.contiguous(), group=self.handle)
        return gathered.view(self.size, *tensor.shape)

    def reduce_scatter(self, tensor: Tensor) -> Tensor:
        """Sum over the group and keep this rank's part: (size, ...) becomes (...)."""
        if self.size == 1:
            return tensor[0]
        self.traffic.add_("reduce_scatter", tensor.nbytes * (self.size - 1) // self.size)
        part = torch.empty_like(tensor[0])
        dist.reduce_scatter_single(part, tensor.flatten(0, 1), group=self.handle)
        return part

    def sum_bucket(
        self,
        bucket: dist.GradBucket,  # type: ignore[name-defined]
    ) -> torch.futures.Future[Tensor]:
        """Sum a bucket of DDP's gradients; its own rule is the mean, but our loss is a sum."""
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
        """The ranks' texts, in rank order; not counted, for what is rare."""
        if self.size == 1:
            return [text]
        said = [""] * self.size
        dist.all_gather_object(said, text, group=self.handle)
        return said

    @contextmanager
    def all_or_none(self) -> Iterator[None]:
        """What cannot be written or read on one rank fails on all, with the same OSError.

        A collective, not counted. Inside, ranks must not wait for each other.
        """
        failure = ""
        try:
            yield
        except OSError as error:
            failure = str(error)
        for said in self.gather_texts(failure):
            if said:
                raise OSError(said)

    def barrier(self) -> None:
        """Wait until every rank of the group is here; not counted."""
        if self.size > 1:
            dist.barrier(group=self.handle)


@dataclass(frozen=True)
class Mesh:
    """All ranks as a grid ("replicate", "shard"): a row shares the classes, a column copies."""

    world: Group = field(default_factory=Group)
    replicate: Group = field(default_factory=Group)
    shard: Group = field(default_factory=Group)
    device_mesh: Any = field(default=None, repr=False)


def make_mesh(shards: int | None = None, device_type: str = "cpu") -> Mesh:
    """Arrange the running processes as (world // shards, shards); None means one shard a rank.

    Without a process group the world is this one process.

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
    """All ranks; this process alone where there is no process group."""
    if not dist.is_initialized():
        return Group()
    return Group(dist.get_rank(), dist.get_world_size(), dist.group.WORLD)


def shard_range(num_classes: int, shards: int, index: int) -> range:
    """Classes of shard `index`: ceil(num_classes / shards) each, the last shards take what is left.

    The convention of MXNet's Partial FC, `torch.chunk` and `DTensor`; late shards may be empty.
    """
    width = -(-num_classes // shards)
    return range(min(index * width, num_classes), min((index + 1) * width, num_classes))


def agree(text: str) -> str:
    """The first rank's `text`, on every rank: for what only one may decide, such as a folder."""
    said = [text]
    if dist.is_initialized():
        dist.broadcast_object_list(said, src=0)
    return said[0]


def device_type(chosen: str) -> str:
    """The type that is meant by "cpu", "cuda" or "auto", which is CUDA where there is one."""
    if chosen != "auto":
        return chosen
    return "cuda" if torch.cuda.is_available() else "cpu"


@contextmanager
def processes(device: str = "auto", timeout_s: float = 600.0) -> Iterator[torch.device]:
    """Join the processes that torchrun started, or be the only one; yields this rank's device.

    Inside another such block it changes nothing, so that a command and what it calls may both ask.

    `device` is "cpu", "cuda" or "auto" (CUDA where there is one). Gloo carries CPU tensors,
    NCCL carries CUDA tensors.
    """
    device = device_type(device)
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device is cuda, but torch sees no CUDA device; use --device cpu")
    here = torch.device(device)
    if here.type == "cuda":  # CUDA only
        here = torch.device(device, int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(here)
    launched = int(os.environ.get("WORLD_SIZE", 1)) > 1 and not dist.is_initialized()
    try:
        if launched:
            _join("nccl" if here.type == "cuda" else "gloo", timeout_s)
        yield here
    except RuntimeError as error:
        if not (launched and _is_lost(error)):
            raise
        why = str(error).splitlines()[0]
        raise ConnectionError(
            f"the other ranks are gone or out of reach ({why}); --resume goes on from the last "
            "checkpoint"
        ) from error
    finally:
        if launched and dist.is_initialized():
            dist.destroy_process_group()


def _join(backend: str, timeout_s: float) -> None:
    """Make the world's process group of the ranks that torchrun started."""
    wait = timedelta(seconds=timeout_s)
    store, rank, size = next(dist.rendezvous("env://", timeout=wait))  # type: ignore[attr-defined]
    store = _fresh(store, rank, size, timeout_s)
    dist.init_process_group(backend, timeout=wait, store=store, rank=rank, world_size=size)


def _fresh(store: Any, rank: int, size: int, timeout_s: float) -> Any:
    """A part of `store` that no earlier start of these ranks has written to.

    torchrun lets all restarts share one store, in which gloo would find the addresses of ranks that
    were killed. So each start draws a name, and the ranks agree on the names that are present: a
    roll has been signed by all only if every one of them lives, since each signs none but those
    with its own name in it.
    """
    names = [f"name/{other}" for other in range(size)]
    store.set(names[rank], uuid4().hex)
    signed = ""
    deadline, pause_s = time.monotonic() + timeout_s, 0.01
    store.wait(names)
    while True:
        roll = sha256(b"".join(store.multi_get(names))).hexdigest()
        if store.add(f"roll/{roll}", int(roll != signed)) == size:
            return dist.PrefixStore(roll, store)  # type: ignore[attr-defined]
        signed = roll
        if time.monotonic() > deadline:
            raise ConnectionError(
                f"not all of the {size} ranks came within {timeout_s:g} s; raise timeout_s, or "
                "look at what the others say"
            )
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, 1.0)


def _is_lost(error: RuntimeError) -> bool:
    """Whether torch means that another rank does not answer; gloo's errors have no type."""
    return isinstance(error, dist.DistError) or "gloo/transport" in str(error)


def replicate(module: nn.Module, world: Group) -> nn.Module:
    """Hold `module` alike on all ranks; its gradients are summed while backward still runs."""
    if world.size == 1:
        return module
    copies = DistributedDataParallel(
        module, process_group=world.handle, forward_sync_buffers=False, gradient_as_bucket_view=True
    )
    copies.register_comm_hook(world, Group.sum_bucket)
    return copies
