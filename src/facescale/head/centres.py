"""The class centres of one shard: a weight row and a momentum row for each class, side by side."""

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

from facescale.allocator import available_memory, use_huge_pages
from facescale.distributed import Group, shard_range
from facescale.head.aside import make_aside
from facescale.head.rows import FORMATS
from facescale.head.startvalues import INIT_STD, START, start_values
from facescale.kernels.cuda import head_kernels_serve
from facescale.random import Key, key

END_BYTES = 16
"""At the end of a stored weight row: all zero means that the row has no start values yet."""
START_ROWS = {"cpu": 1 << 10, "cuda": 1 << 15}  # started at a time: cache, or launches

Rows = slice | Tensor
"""Rows of a shard: a slice, or sorted row numbers (k,)."""


class ClassCentres(nn.Module):
    """Rows [first, last) of the matrix of class centres (num_classes * subcentres, dim).

    The rows of a class follow each other and are on one shard. `table[row]` is (parts, width): the
    weight, then its moments (momentum of SGD; first and second moment of AdamW), as `format` lays
    them out. They are next to each other in memory, so that a drawn class costs one page.

    A row gets its start value, N(0, 0.01) as a function of seed and class, when it is first read.
    Until then the table is memory that the system has reserved but not committed.

    A step may move the rows on a second stream of the device (`aside`). Every reader and writer of
    this class waits for it, those of `state_dict` and copies included; `buffers()` does not.
    """

    counts: Tensor
    """Draws of each row, (rows,) int32, where the optimizer needs them; else (0,)."""

    def __init__(
        self,
        num_classes: int,
        dim: int,
        shard: Group,
        *,
        dtype: torch.dtype = torch.float32,
        parts: int = 2,
        subcentres: int = 1,
        counts: bool = False,
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
        self.subcentres = subcentres
        classes = shard_range(num_classes, shard.size, shard.rank)
        self.rows = range(classes.start * subcentres, classes.stop * subcentres)
        """Those of the whole matrix that are here."""
        shape = (len(self.rows), parts, dim + self.format.extra)
        _check_room(shape, self.format.stored, torch.device(device))
        self.register_buffer("table", torch.zeros(shape, dtype=self.format.stored, device=device))
        use_huge_pages(self.table)
        shape_of_counts = (len(self.rows) if counts else 0,)
        self.register_buffer(
            "counts", torch.zeros(shape_of_counts, dtype=torch.int32, device=device),
            persistent=counts,
        )  # fmt: skip
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
        return len(self.rows)

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

    def state(self, rows: Rows) -> Tensor:
        """Weight and moments of `rows`, (k, parts, dim), to be changed in place for `write_`.

        A view of the table for a slice of exact numbers; else a copy, in memory that the next
        `state` or `weight` uses again: fresh memory would have to be zeroed by the kernel each
        time. `weight(rows)` or `touch_(rows)` must have been asked for before.
        """
        parts = self.table.shape[1]
        self._stored = self._gather(rows, parts)
        self._state = self.format.decode(self._stored, self._room(len(self._stored), parts))
        return self._state

    def read(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """Weight and momentum of `rows`, each (k, dim), as `state`; zeros if none is kept."""
        state = self.state(rows)
        momentum = state[:, 1] if state.shape[1] > 1 else torch.zeros_like(state[:, 0])
        return state[:, 0], momentum

    def count_(self, rows: Rows) -> Tensor:
        """Count one more draw of `rows`; returns the number of each, (k,)."""
        self.counts[rows] += 1
        return self.counts[rows]

    def write_(self, rows: Rows, key: Key) -> None:
        """Put back what `state(rows)` gave, as it is now. Other rows keep every bit.

        Where numbers are rounded, the random bits are a function of `key`, row, part and column.
        """
        bits = None
        if self.format.rounds:
            numbers = rows if isinstance(rows, Tensor) else _numbers(rows, len(self), self._device)
            counters = torch.arange(self._state[0].numel(), device=self._device)
            matrix_rows = (numbers + self.rows.start)[:, None]
            bits = key.child(matrix_rows).bits(counters).view(self._state.shape)
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

    def put_(self, rows: Tensor, state: Tensor, counts: Tensor | None = None) -> None:
        """Store rows (k, parts, dim) of another matrix, and their draws; zeros: an untouched row.

        Moments of another optimizer are left out, and the row starts with none.
        """
        parts = self.table.shape[1]
        other = 3 in (parts, state.shape[1]) and parts != state.shape[1]
        kept = state[:, : 1 if other else parts]
        stored = self.table.new_zeros(len(rows), *self.table.shape[1:])
        numbers = self._numbers.new_zeros(len(rows), parts, self.dim)
        numbers[:, : kept.shape[1]] = kept.to(numbers)
        self.format.encode_(stored, numbers, None)
        here = rows.to(self.table.device)
        self.table[here] = stored
        if counts is not None and len(self.counts) and not other:
            self.counts[here] = counts.to(self.counts)
        self._maybe_fresh[here] = True
        self._all_started = False

    def full(self) -> Tensor:
        """The whole matrix on every rank, by a collective; for small ones."""
        self.start_()
        out = self._numbers.new_empty(len(self), 1, self.dim)
        return self.shard.gather_rows(self.format.decode(self.table[:, :1], out)[:, 0])

    def _start_(self, rows: Tensor) -> None:
        """Write the start values of `rows`, with no momentum."""
        if head_kernels_serve(self.table, self.dim):
            from facescale.kernels.cuda.operands import Drawn
            from facescale.kernels.cuda.start import start_

            drawn = Drawn(self.table, self.dim, len(rows), rows)
            start_(drawn, key(self.seed, START), self.rows.start, INIT_STD)
            return
        for some in rows.split(self._start_rows):
            state = self._numbers.new_zeros(len(some), 1, self.dim)
            state[:, 0] = start_values(self.seed, some + self.rows.start, self.dim)
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


def rows_of_classes(classes: Tensor, subcentres: int) -> Tensor:
    """The rows of classes (k,), in order; (k * subcentres,)."""
    if subcentres == 1:
        return classes
    own = torch.arange(subcentres, device=classes.device)
    return (classes[:, None] * subcentres + own).flatten()


def _check_room(shape: tuple[int, ...], stored: torch.dtype, device: torch.device) -> None:
    """Fail now: memory that is only reserved would run out in the middle of a run."""
    needed = torch.Size(shape).numel() * stored.itemsize
    if device.type == "cpu" and needed > (left := available_memory()):
        raise MemoryError(
            f"{shape[0]} class centres need {needed / 2**30:.1f} GiB, and {left / 2**30:.1f} are "
            "available; store them in bfloat16 or int8 (head.rows), without momentum "
            "(head.momentum 0), or on more ranks"
        )


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
