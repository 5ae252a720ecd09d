"""The tensors of a checkpoint, by torch.distributed.checkpoint: any ranks write, any others read.

The class centres are one tensor (num_classes, parts, width), rows as `head.rows` lays them out.
Ranks write the rows they hold, in pieces: whoever reads some never has to hold many more.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    MetadataIndex,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadPlan,
    SavePlan,
    SavePlanner,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.checkpoint.storage import WriteResult
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard
from torch.futures import Future

from facescale.checkpoint.statistics import read_statistics, write_statistics_
from facescale.distributed import Mesh
from facescale.head import MarginHead
from facescale.head.rows import FORMATS

CENTRES = "centres"
PIECE_ROWS = 1 << 14  # 64 MiB at 512 float32 numbers and their momentum


def write(
    folder: Path,
    backbone: nn.Module,
    optimizer: torch.optim.Optimizer,
    head: MarginHead,
    statistics: Tensor,
) -> None:
    """Write all that learns into `folder`. A collective.

    `backbone` holds BatchNorm statistics fit for all ranks, `statistics` (n,) are this rank's own.

    Raises:
        OSError: A rank could not write its part; on every rank alike.
    """
    tensors = _tensors(backbone, optimizer, head) | {"statistics": _by_rank(statistics, head.mesh)}
    planner = _InPieces(head.centres.table, head.centres.classes.start)
    with _quiet():
        try:
            save(
                tensors,
                storage_writer=_Writer(folder),
                planner=planner,
                no_dist=head.mesh.world.size == 1,
            )
        except CheckpointException as error:
            _, (cause, _) = min(error.failures.items())
            raise OSError(str(cause)) from error


class _Writer(FileSystemWriter):
    """Says why a rank could not write: torch hides the system's words from the other ranks."""

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        try:
            return super().write_data(plan, planner)
        except Exception as error:
            root: BaseException = error
            while (deeper := root.__cause__ or root.__context__) is not None:
                root = deeper
            raise OSError(f"{root} (rank {self.rank or 0})") from error


def read(
    folder: Path,
    backbone: nn.Module,
    optimizer: torch.optim.Optimizer,
    head: MarginHead,
    *,
    same_ranks: bool,
) -> None:
    """Fill all that learns from `folder`, in place. A collective.

    Where as many ranks read as wrote (`same_ranks`), each gets its own BatchNorm statistics back.

    Raises:
        ValueError: The class centres are stored in another way than this head's.
    """
    _check_rows(folder, head)
    tensors = _tensors(backbone, optimizer, head)
    statistics = read_statistics(backbone)
    if same_ranks:
        tensors["statistics"] = _by_rank(statistics, head.mesh)
    with _quiet():
        load(tensors, checkpoint_id=folder, no_dist=head.mesh.world.size == 1)
    head.centres.look_again_()
    set_state_dict(
        backbone,
        optimizer,
        model_state_dict=tensors["backbone"],
        optim_state_dict=tensors["optimizer"],
    )
    if same_ranks:
        write_statistics_(backbone, statistics)


def read_backbone_(
    folder: Path, backbone: nn.Module, optimizer: torch.optim.Optimizer | None = None
) -> None:
    """Fill the backbone, and the optimizer if given, but no class centres. Each rank by itself."""
    with _quiet():
        if optimizer is None:
            tensors = {"backbone": backbone.state_dict()}
            load(tensors, checkpoint_id=folder, no_dist=True)
            backbone.load_state_dict(tensors["backbone"])
            return
        model, optim = get_state_dict(backbone, optimizer)
        load({"backbone": model, "optimizer": optim}, checkpoint_id=folder, no_dist=True)
        set_state_dict(backbone, optimizer, model_state_dict=model, optim_state_dict=optim)


def num_centres(folder: Path) -> int:
    """Classes in `folder`."""
    return _stored_centres(folder).size[0]


def read_centres(folder: Path, classes: range) -> Tensor:
    """Weight and momentum of some classes that follow each other, (len(classes), 2, dim).

    Zeros where a class has no momentum, or was never touched.
    """
    stored = _stored_centres(folder)
    rows = torch.empty(len(classes), *stored.size[1:], dtype=stored.properties.dtype)
    with _quiet():
        planner = _SomeRows(classes.start)
        load({CENTRES: rows}, checkpoint_id=folder, planner=planner, no_dist=True)
    (row_format,) = (known for known in FORMATS.values() if known.stored == rows.dtype)
    _, parts, width = rows.shape
    numbers = torch.zeros(len(rows), 2, width - row_format.extra, dtype=row_format.numbers)
    numbers[:, :parts] = row_format.decode(rows, numbers[:, :parts].clone())
    return numbers


def _check_rows(folder: Path, head: MarginHead) -> None:
    stored, table = _stored_centres(folder), head.centres.table
    theirs, ours = (tuple(stored.size[1:]), stored.properties.dtype), (table.shape[1:], table.dtype)
    if theirs != ours:
        raise ValueError(
            f"{folder}: its class centres are {theirs[1]} {list(theirs[0])}, this run's "
            f"{ours[1]} {list(ours[0])}; keep head.rows and head.momentum, or begin a new run with "
            "start.checkpoint, which converts them"
        )


def _stored_centres(folder: Path) -> TensorStorageMetadata:
    stored = FileSystemReader(folder).read_metadata().state_dict_metadata[CENTRES]
    assert isinstance(stored, TensorStorageMetadata)
    return stored


def _tensors(
    backbone: nn.Module, optimizer: torch.optim.Optimizer, head: MarginHead
) -> dict[str, Any]:
    model, optim = get_state_dict(backbone, optimizer)
    table = head.centres.table
    shape = (head.num_classes, *table.shape[1:])
    centres = _distributed(table, head.mesh, [Replicate(), Shard(0)], shape)
    return {"backbone": model, "optimizer": optim, CENTRES: centres}


def _by_rank(values: Tensor, mesh: Mesh) -> Tensor:
    """(n,) of each rank as one tensor (ranks, n)."""
    shape = (mesh.world.size, len(values))
    return _distributed(values[None], mesh, [Shard(0), Shard(0)], shape)


def _distributed(
    local: Tensor, mesh: Mesh, placements: list[Placement], shape: tuple[int, ...]
) -> Tensor:
    """The tensor of this shape of which each rank holds `local`; without a mesh that is all."""
    if mesh.device_mesh is None:
        return local
    stride = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(
        local,
        mesh.device_mesh,
        placements,
        run_check=False,
        shape=torch.Size(shape),
        stride=stride,
    )


class _InPieces(DefaultSavePlanner):
    """Writes this rank's class centres, which begin at class `first`, in pieces of some rows."""

    def __init__(self, table: Tensor, first: int) -> None:
        super().__init__()
        self.table, self.first = table, first

    def create_local_plan(self) -> SavePlan:
        plan = super().create_local_plan()
        items = [piece for item in plan.items for piece in self._cut(item)]
        self.plan = replace(plan, items=items)
        return self.plan

    def _cut(self, item: WriteItem) -> Iterator[WriteItem]:
        if item.index.fqn != CENTRES:
            yield item
            return
        data = item.tensor_data
        assert data is not None
        for start in range(0, len(self.table), PIECE_ROWS):
            rows = min(PIECE_ROWS, len(self.table) - start)
            offsets = torch.Size((self.first + start, 0, 0))
            chunk = ChunkStorageMetadata(offsets, torch.Size((rows, *self.table.shape[1:])))
            yield replace(
                item,
                index=MetadataIndex(CENTRES, offsets),
                type=WriteItemType.SHARD,
                tensor_data=replace(data, chunk=chunk),
            )

    def lookup_object(self, index: MetadataIndex) -> Any:
        if index.fqn != CENTRES:
            return super().lookup_object(index)
        assert index.offset is not None
        start = index.offset[0] - self.first
        return self.table[start : start + PIECE_ROWS]


class _SomeRows(DefaultLoadPlanner):
    """Reads the class centres from class `first` on, as many as the tensor has rows."""

    def __init__(self, first: int) -> None:
        super().__init__()
        self.first = first

    def create_local_plan(self) -> LoadPlan:
        assert self.metadata is not None
        stored = self.metadata.state_dict_metadata[CENTRES]
        assert isinstance(stored, TensorStorageMetadata)
        wanted = ChunkStorageMetadata(
            torch.Size((self.first, 0, 0)), self.state_dict[CENTRES].shape
        )
        return LoadPlan(create_read_items_for_chunk_list(CENTRES, stored, [wanted]))

    def lookup_tensor(self, index: MetadataIndex) -> Tensor:
        rows: Tensor = self.state_dict[index.fqn]
        return rows


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's warning that one process alone is about to read or write."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        yield
