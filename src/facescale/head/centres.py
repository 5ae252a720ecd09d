"""The class centres of one shard: a weight row and a momentum row for each class, side by side."""

import ctypes
from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

from facescale.allocator import available_memory, use_huge_pages
from facescale.distributed import Group, shard_range
from facescale.head.aside import make_aside
from facescale.head.rows import FORMATS
from facescale.kernels.cpu.build import library
from facescale.kernels.cuda import head_kernels_serve
from facescale.random import Key, key

INIT_STD = 0.01  # as arcface_torch, MXNet and OneFlow
START, SAMPLING, ROUNDING = range(3)  # keys of the head's random numbers
END_BYTES = 16
"""At the end of a stored weight row: all zero means that the row has no start values yet."""
START_ROWS = {"cpu": 1 << 10, "cuda": 1 << 15}  # started at a time: cache, or launches

Rows = slice | Tensor
"""Rows of a shard: a slice, or sorted row numbers (k,)."""


class ClassCentres(nn.Module):
    """Rows [first, last) of the matrix of class centres (num_classes, dim), with their momentum.

    `table[row]` is (parts, width): the weight, then the momentum if there is one, as `format` lays
    them out. Both are next to each other in memory, so that a drawn class costs one page, not two.

    A row gets its start value, N(0, 0.01) as a function of seed and class, when it is first read.
    Until then the table is memory that the system has reserved but not committed.

    A step may move the rows on a second stream of the device (`aside`). Every reader and writer of
    this class waits for it, those of `state_dict` and copies included; `buffers()` does not.
    """

    def __init__(
        self,
        num_classes: int,
        dim: int,
        shard: Group,
        *,
        dtype: torch.dtype = torch.float32,
        momentum: bool = True,
        device: torch.device | str = "cpu",
        seed: int = 0,
    ) -> None:
        super().__init__()
        if dtype not in FORMATS:
            names = ", ".join(str(known).removeprefix("torch.") for known in FORMATS)
            raise ValueError(f"class centres are one of {names}, got {dtype}")
        if dtype == torch.int8 and dim % 4:
            raise ValueError(f"int8 class centres need a dim that 4 divides, got {dim}")
        self.num_classes, self.dim, self.shard, self.seed = num_classes, dim, shard, seed
        self.format = FORMATS[dtype]
        self.aside = make_aside(torch.device(device))
        self.classes = shard_range(num_classes, shard.size, shard.rank)
        shape = (len(self.classes), 1 + momentum, dim + self.format.extra)
        _check_room(shape, self.format.stored, torch.device(device))
        self.register_buffer("table", torch.zeros(shape, dtype=self.format.stored, device=device))
        use_huge_pages(self.table)
        self._copied, self._stored = (self.table.new_empty(0) for _ in range(2))
        self._numbers = self.table.new_empty(0, dtype=self.format.numbers)
        self._state = self._numbers
        self.look_again_()
        self.register_state_dict_pre_hook(_wait)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_wait)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_post_hook(_look_again)  # type: ignore[no-untyped-call]

    @property
    def table(self) -> Tensor:
        """All stored rows, once the last step has moved them; see the class."""
        self.aside.wait()
        table = self._buffers.get("table")
        if table is None:  # as `register_buffer` asks before there is one
            raise AttributeError("table")
        return table

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self.aside.wait()  # `to` and its like
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call,no-any-return]

    def __getstate__(self) -> dict[str, Any]:
        """For copies."""
        self.aside.wait()
        return self.__dict__

    def __len__(self) -> int:
        return len(self.classes)

    def weight(self, rows: Rows) -> Tensor:
        """The centres of `rows`, not normalised; (k, dim). Good until the next call."""
        self.touch_(rows)
        stored = self._gather(rows, parts=1)
        return self.format.decode(stored, self._room(len(stored), 1))[:, 0]

    def touch_(self, rows: Rows) -> None:
        """Give those of `rows` that nobody has read yet their start values."""
        if self._all_started:
            return
        if self._maybe_fresh[rows].any():
            fresh = (_ends(self.table)[rows] == 0).all(dim=1)
            numbers = rows if isinstance(rows, Tensor) else _numbers(rows, len(self), fresh.device)
            self._start_(numbers[fresh])
            self._maybe_fresh[rows] = False

    def read(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """Weight and momentum of `rows`, each (k, dim), to be changed in place for `write_`.

        Views of the table for a slice of exact numbers; else copies, in memory that the next
        `read` or `weight` uses again: fresh memory would have to be zeroed by the kernel each time.
        `weight(rows)` or `touch_(rows)` must have been asked for before.
        """
        parts = self.table.shape[1]
        self._stored = self._gather(rows, parts)
        self._state = self.format.decode(self._stored, self._room(len(self._stored), parts))
        if parts == 2:
            return self._state[:, 0], self._state[:, 1]
        return self._state[:, 0], torch.zeros_like(self._state[:, 0])

    def write_(self, rows: Rows, key: Key) -> None:
        """Put back what `read(rows)` gave, as it is now. Other rows keep every bit.

        Where numbers are rounded, the random bits are a function of `key`, class, part and column.
        """
        bits = None
        if self.format.rounds:
            numbers = rows if isinstance(rows, Tensor) else _numbers(rows, len(self), self._device)
            counters = torch.arange(self._state[0].numel(), device=self._device)
            classes = (numbers + self.classes.start)[:, None]
            bits = key.child(classes).bits(counters).view(self._state.shape)
        self.format.encode_(self._stored, self._state, bits)
        if isinstance(rows, Tensor):
            _words(self.table)[rows] = _words(self._stored)

    @property
    def _start_rows(self) -> int:
        return START_ROWS.get(self._device.type, START_ROWS["cuda"])

    @property
    def _device(self) -> torch.device:
        device: torch.device = self._buffers["table"].device  # type: ignore[union-attr]
        return device

    def look_again_(self) -> None:
        """Look for rows without start values anew; to be called after `table` has been filled."""
        # To look at the table itself in each step would cost a cache line a row.
        self._maybe_fresh = torch.ones(len(self), dtype=torch.bool, device=self.table.device)
        self._all_started = False

    def start_(self) -> None:
        """Give every row that nobody has touched its start value, as reading it would."""
        step = self._start_rows
        for first in range(0, len(self), step):
            self.touch_(slice(first, first + step))
        self._all_started = True

    def put_(self, rows: Tensor, state: Tensor) -> None:
        """Store weight and momentum (k, 2, dim) of another matrix; zeros are an untouched row."""
        parts = self.table.shape[1]
        stored = self.table.new_zeros(len(rows), *self.table.shape[1:])
        self.format.encode_(
            stored, state[:, :parts].to(self.table.device, self._numbers.dtype), None
        )
        self.table[rows.to(self.table.device)] = stored
        self._all_started = False

    def full(self) -> Tensor:
        """The whole matrix (num_classes, dim) on every rank, by a collective; for small ones."""
        self.start_()
        out = self._numbers.new_empty(len(self), 1, self.dim)
        return self.shard.gather_rows(self.format.decode(self.table[:, :1], out)[:, 0])

    def _start_(self, rows: Tensor) -> None:
        """Write the start values of `rows`, with no momentum."""
        if head_kernels_serve(self.table, self.dim):
            from facescale.kernels.cuda.operands import Drawn
            from facescale.kernels.cuda.start import start_

            drawn = Drawn(self.table, self.dim, len(rows), rows)
            start_(drawn, key(self.seed, START), self.classes.start, INIT_STD)
            return
        for some in rows.split(self._start_rows):
            state = self._numbers.new_zeros(len(some), 1, self.dim)
            state[:, 0] = start_values(self.seed, some + self.classes.start, self.dim)
            stored = self.table.new_zeros(len(some), *self.table.shape[1:])
            self.format.encode_(stored[:, :1], state, None)
            self.table[some] = stored

    def _gather(self, rows: Rows, parts: int) -> Tensor:
        """Stored rows (k, parts, width): a view for a slice, else a copy in memory that is kept."""
        if isinstance(rows, slice):
            return self.table[rows, :parts]
        shape = (len(rows), parts, self.table.shape[2])
        self._copied = _enough(self._copied, shape)
        copied = self._copied[: len(rows) * parts * shape[2]].view(shape)
        torch.index_select(_words(self.table[:, :parts]), 0, rows, out=_words(copied))
        return copied

    def _room(self, num_rows: int, parts: int) -> Tensor:
        """Memory for the numbers of rows, (num_rows, parts, dim), which is kept too."""
        shape = (num_rows, parts, self.dim)
        self._numbers = _enough(self._numbers, shape)
        return self._numbers[: num_rows * parts * self.dim].view(shape)


def _wait(centres: ClassCentres, *_: object) -> None:
    """Before `state_dict` reads the table, and before `load_state_dict` fills it."""
    centres.aside.wait()


def _look_again(centres: ClassCentres, _: object) -> None:
    """After `load_state_dict` has filled the table."""
    centres.look_again_()


def _check_room(shape: tuple[int, ...], stored: torch.dtype, device: torch.device) -> None:
    """Fail now: memory that is only reserved would run out in the middle of a run."""
    needed = torch.Size(shape).numel() * stored.itemsize
    if device.type == "cpu" and needed > (left := available_memory()):
        raise MemoryError(
            f"{shape[0]} class centres need {needed / 2**30:.1f} GiB, and {left / 2**30:.1f} are "
            "available; store them in bfloat16 or int8 (head.rows), without momentum "
            "(head.momentum 0), or on more ranks"
        )


def start_values(seed: int, classes: Tensor, dim: int) -> Tensor:
    """N(0, 0.01) as a function of (seed, class, column), float32; (k, dim).

    The same for any sharding. Compiled and torch's numbers differ by 1e-8 at most.
    """
    start = key(seed, START)
    kernels = library("head") if classes.device.type == "cpu" else None
    if kernels is None:
        return start.child(classes[:, None]).normal(dim) * INIT_STD
    out, classes = torch.empty(len(classes), dim), classes.contiguous()
    kernels.head_start(
        *(ctypes.c_uint32(word) for word in start),
        ctypes.c_void_p(classes.data_ptr()),
        ctypes.c_int64(len(classes)),
        ctypes.c_int32(dim),
        ctypes.c_float(INIT_STD),
        ctypes.c_void_p(out.data_ptr()),
        ctypes.c_int32(torch.get_num_threads()),
    )
    return out


def _enough(room: Tensor, shape: tuple[int, ...]) -> Tensor:
    """`room`, or a larger one for `shape`."""
    needed = torch.Size(shape).numel()
    return room if room.numel() >= needed else room.new_empty(needed)


def _numbers(rows: slice, num_rows: int, device: torch.device) -> Tensor:
    """The row numbers of a slice."""
    return torch.arange(*rows.indices(num_rows), device=device)


def _ends(stored: Tensor) -> Tensor:
    """The last bytes of each weight row, (k, END_BYTES or fewer)."""
    return stored[:, 0].view(torch.uint8)[:, -END_BYTES:]


def _words(stored: Tensor) -> Tensor:
    """(k, parts, width) as one row each, of words where they are whole: faster to copy."""
    rows = stored.flatten(1)
    whole = rows.shape[1] * rows.element_size() % 4 == 0
    return rows.view(torch.int32) if whole else rows
