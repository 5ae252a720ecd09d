"""The tensors of a checkpoint: a safetensors file a rank, which any number of ranks can read.

| in the file of | name | what |
|---|---|---|
| rank 0 | `backbone/NAME` | weights and buffers of the backbone, alike on all ranks |
| rank 0 | `optimizer/NAME/KEY` | what the optimizer keeps for the parameter `NAME` |
| rank 0 | `head/NAME` | buffers of the head other than the class centres |
| rank 0 | `average/NAME` | moving average of weights and statistics, where there is one |
| rank 0 | `gradients/NAME` | sums of gradients, between two updates of the backbone |
| every rank | `own/NAME` | what is different on each rank: BatchNorm statistics |
| the first copy of each shard | `centres` | its class centres (k, parts, width) |
| the first copy of each shard | `counts` | of AdamW: draws of each of them (k,), int32 |

Class centres are stored as `head.rows` lays them out; `run.json` says which file holds which.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from facescale.checkpoint import record
from facescale.head.rows import FORMATS
from facescale.models.names import Shapes, differences, shapes_of
from facescale.models.tensorfile import Kind, TensorFile, kind_of, open_tensors

CENTRES = "centres"
COUNTS = "counts"
PIECE_ROWS = 1 << 14  # read at a time: 64 MiB at 512 float32 numbers and their momentum
_FINITE_ROWS = 1 << 12  # looked at together
SLOTS = {"SGD": ("momentum_buffer",), "AdamW": ("exp_avg", "exp_avg_sq", "step")}
"""What an optimizer may keep for a parameter."""


def file_name(rank: int) -> str:
    """Name of the file that a rank writes."""
    return f"rank-{rank:05d}.safetensors"


def shared_tensors(
    backbone: nn.Module, optimizer: torch.optim.Optimizer, head: nn.Module
) -> dict[str, Tensor]:
    """What is alike on all ranks, by the name that it has in a checkpoint; no copies."""
    tensors = {f"backbone/{name}": value for name, value in backbone.state_dict().items()}
    for name, parameter in backbone.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                tensors[f"optimizer/{name}/{key}"] = value
    return tensors | {f"head/{name}": value for name, value in _head_buffers(head).items()}


def _head_buffers(head: nn.Module) -> dict[str, Tensor]:
    """All but the class centres themselves."""
    return {
        name: buffer for name, buffer in head.named_buffers() if not name.startswith("centres.")
    }


def read_shared_(
    folder: Path,
    backbone: nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    head: nn.Module | None = None,
) -> None:
    """Fill the backbone, and if given the optimizer and the head's buffers. No collective.

    Raises:
        ValueError: The checkpoint has other names or shapes; nothing is then changed.
    """
    with open_tensors(folder / file_name(0)) as file:
        _check(file, "backbone", backbone.state_dict())
        if head is not None:
            _check(file, "head", _head_buffers(head))
        if optimizer is not None:
            _load_optimizer_(optimizer, backbone, file)
        for name, value in backbone.state_dict().items():
            value.copy_(file.tensor(f"backbone/{name}"))
        for name, value in ({} if head is None else _head_buffers(head)).items():
            value.copy_(file.tensor(f"head/{name}"))


def read_kept(folder: Path, parts: Sequence[str] = ("average", "gradients")) -> dict[str, Tensor]:
    """The average of the weights and the sums of gradients, `average/NAME`, `gradients/NAME`."""
    with open_tensors(folder / file_name(0)) as file:
        return {name: file.tensor(name) for name in file.kinds if name.split("/")[0] in parts}


def backbone_shapes(folder: Path) -> Shapes:
    """Names and shapes of the backbone's tensors in a checkpoint."""
    with open_tensors(folder / file_name(0)) as file:
        return {name: kind.shape for name, kind in _under(file, "backbone").items()}


def _check(file: TensorFile, part: str, own: Mapping[str, Tensor]) -> None:
    """ValueError where the file has other names or shapes under `part/` than `own`."""
    found = {name: kind.shape for name, kind in _under(file, part).items()}
    if wrong := differences(shapes_of(own), found):
        raise ValueError(f"{file.path}: does not fit this run's {part}: {wrong}")


def _under(file: TensorFile, part: str) -> dict[str, Kind]:
    """What the file has under `part/`, without that."""
    names = (name for name in file.kinds if name.startswith(f"{part}/"))
    return {name.removeprefix(f"{part}/"): file.kinds[name] for name in names}


def _load_optimizer_(
    optimizer: torch.optim.Optimizer, backbone: nn.Module, file: TensorFile
) -> None:
    """Give the optimizer what it kept for each parameter, found by the parameter's name.

    Learning rate, weight decay and the like stay as they are: they come from the config.
    """
    names = {parameter: name for name, parameter in backbone.named_parameters()}
    slots = SLOTS[type(optimizer).__name__]
    frozen = tuple(f"{name}/" for parameter, name in names.items() if not parameter.requires_grad)
    stored = {
        name: kind
        for name, kind in _under(file, "optimizer").items()
        if not name.startswith(frozen)
    }
    state: dict[int, dict[str, Tensor]] = {}
    learning = [p for group in optimizer.param_groups for p in group["params"]]
    for number, parameter in enumerate(learning):
        keys = [key for key in slots if f"{names[parameter]}/{key}" in stored]
        if keys and len(keys) < len(slots):
            raise ValueError(f"{file.path}: of {names[parameter]} it has {keys}, not {slots}")
        for key in keys:
            name = f"{names[parameter]}/{key}"
            shape = stored.pop(name).shape
            like = torch.empty(()) if key == "step" else torch.empty_like(parameter)
            if shape != tuple(like.shape):
                raise ValueError(f"{file.path}: optimizer/{name} has shape {list(shape)}")
            value = like.copy_(file.tensor(f"optimizer/{name}"))  # keeps the layout in memory
            state.setdefault(number, {})[key] = value
    if stored:
        raise ValueError(
            f"{file.path}: optimizer/{next(iter(stored)):.100} is nothing that this run's "
            f"{type(optimizer).__name__} keeps; give optim.name as in the run that wrote it"
        )
    optimizer.load_state_dict(
        {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
    )


def read_own(folder: Path, rank: int, name: str, like: Tensor) -> Tensor:
    """What the rank alone had under that name, with the type and shape of `like`."""
    with open_tensors(folder / file_name(rank)) as file:
        found = file.kinds.get(f"own/{name}")
        if found is None or found.shape != tuple(like.shape):
            raise ValueError(f"{file.path}: own/{name} is {found}, expected {kind_of(like)}")
        return torch.empty_like(like).copy_(file.tensor(f"own/{name}"))


def read_rows_(folder: Path, first: int, table: Tensor) -> None:
    """Fill `table` (k, parts, width) with the class centres [first, first + k), as stored.

    Any number of ranks may have written them; only the files that hold some are opened.

    Raises:
        ValueError: The checkpoint has not that many classes, or stores them otherwise.
    """
    known = record.read(folder)
    check_stored(folder, known, kind_of(table))
    stop = first + len(table)
    _check_classes(folder, known, stop)
    for rows in known.rows_of(range(first, stop)):
        with _centres_of(folder, known, rows) as file:
            begin, end = max(first, rows.first), min(stop, rows.stop)
            for start in range(begin, end, PIECE_ROWS):
                piece_stop = min(start + PIECE_ROWS, end)
                piece = file.rows(CENTRES, start - rows.first, piece_stop - rows.first)
                table[start - first : piece_stop - first].copy_(piece)


@contextmanager
def _centres_of(folder: Path, known: record.Record, rows: record.Rows) -> Iterator[TensorFile]:
    """The file of a rank, which holds what `run.json` says it does."""
    with open_tensors(folder / file_name(rows.rank)) as file:
        expected = Kind((rows.stop - rows.first, *known.centres.shape[1:]), known.centres.dtype)
        if file.kinds.get(CENTRES) != expected:
            raise ValueError(f"{file.path}: its class centres are not {expected}, as run.json says")
        yield file


def read_counts_(folder: Path, first: int, counts: Tensor) -> None:
    """Fill `counts` (k,) with the draws of rows [first, first + k); zeros where none are stored."""
    known, stop = record.read(folder), first + len(counts)
    counts.zero_()
    for rows in known.rows_of(range(first, stop)):
        with _centres_of(folder, known, rows) as file:
            if (kind := file.kinds.get(COUNTS)) is None:
                continue
            if kind != Kind((rows.stop - rows.first,), torch.int32):
                raise ValueError(f"{file.path}: its counts are {kind}, expected one for each row")
            begin, end = max(first, rows.first), min(stop, rows.stop)
            piece = file.rows(COUNTS, begin - rows.first, end - rows.first)
            counts[begin - first : end - first].copy_(piece)


def check_stored(folder: Path, known: record.Record, own: Kind) -> None:
    """ValueError where class centres are stored in another way than in a table of kind `own`."""
    theirs = known.centres
    if (theirs.shape[1:], theirs.dtype) != (own.shape[1:], own.dtype):
        raise ValueError(
            f"{folder}: a class centre is {Kind(theirs.shape[1:], theirs.dtype)}, in this run "
            f"{Kind(own.shape[1:], own.dtype)}; keep head.rows, head.momentum and optim.head_name, "
            "or begin a new run with start.checkpoint, which converts them"
        )


def num_centres(folder: Path) -> int:
    """Rows of class centres in the checkpoint `folder`."""
    return record.read(folder).centres.shape[0]


def read_centres(folder: Path, classes: range) -> Tensor:
    """Weight and moments of consecutive rows, (len(classes), 2 or 3, dim).

    Zeros where a row has no momentum, or was never touched.
    """
    known = record.read(folder)
    stored, (_, parts, width) = known.centres.dtype, known.centres.shape
    row_format = next((one for one in FORMATS.values() if one.stored == stored), None)
    if row_format is None or parts not in (1, 2, 3) or not _is_width(width, row_format.extra):
        raise ValueError(f"{folder}: class centres cannot be {known.centres}")
    _check_classes(folder, known, classes.stop)
    for held in known.rows_of(classes):  # before memory is asked for
        with _centres_of(folder, known, held):
            pass
    rows = torch.empty(len(classes), parts, width, dtype=stored)
    read_rows_(folder, classes.start, rows)
    numbers = torch.zeros(
        len(rows), max(parts, 2), width - row_format.extra, dtype=row_format.numbers
    )
    numbers[:, :parts] = row_format.decode(rows, numbers[:, :parts].clone())
    return numbers


def _is_width(width: int, extra: int) -> bool:
    """Whether a stored row can be that wide; a scale behind it is aligned as a float32."""
    return width > extra and (extra == 0 or width % 4 == 0)


def _check_classes(folder: Path, known: record.Record, stop: int) -> None:
    if stop > known.centres.shape[0]:
        raise ValueError(f"{folder} has {known.centres.shape[0]} classes, asked for {stop}")


def are_finite(values: Iterable[Tensor]) -> bool:
    """Whether all numbers in all tensors are finite."""
    return all(
        math.isfinite(torch.linalg.vector_norm(value, torch.inf))
        for value in values
        if value.is_floating_point() and value.numel()
    )


def rows_are_finite(table: Tensor) -> bool:
    """Whether all numbers of stored class centres (k, parts, width) are finite."""
    row_format = next(one for one in FORMATS.values() if one.stored == table.dtype)
    _, parts, width = table.shape
    room = table.new_empty(
        min(len(table), _FINITE_ROWS), parts, width - row_format.extra, dtype=row_format.numbers
    )
    return are_finite(
        row_format.decode(piece, room[: len(piece)]) for piece in table.split(_FINITE_ROWS)
    )
