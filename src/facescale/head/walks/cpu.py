"""The walk over the drawn class centres in a compiled kernel, on a CPU."""

import ctypes
from ctypes import c_float, c_int32, c_int64, c_uint32, c_void_p

import torch
from torch import Tensor

from facescale.head.centres import Rows
from facescale.head.step import Step
from facescale.kernels.cpu.build import library

FORMATS = {torch.float32: 0, torch.bfloat16: 1, torch.uint8: 2}  # what `head.cpp` knows
WIDE = 256  # samples; from here on larger tiles, for their sake
SHARED_ROWS = 2048  # whose momentum copies of a shard sum up at a time


class Arguments(ctypes.Structure):
    """As `Head` in kernels/cpu/tiles.h; shapes are there."""

    _fields_ = (
        *((name, c_void_p) for name in ("table", "rows", "batch", "own_row", "own_sample")),
        *((name, c_void_p) for name in ("logits", "maximum", "sum", "own_cosine", "log_sum")),
        *((name, c_void_p) for name in ("to_own", "gradient", "room", "velocity")),
        *((name, c_int64) for name in ("first", "last", "num_kept", "num_own", "first_class")),
        *((name, c_int32) for name in ("dim", "samples", "parts", "width", "format", "tile")),
        ("threads", c_int32),
        *((name, c_uint32) for name in ("key_low", "key_high")),
        *((name, c_float) for name in ("scale", "factor", "lr", "momentum", "weight_decay")),
        ("limit", c_float),
    )


class CompiledWalk:
    """`BlockWalk` by tiles that stay in a core's own cache, all passes in one."""

    defers = False

    @staticmethod
    def serves(step: Step) -> bool:
        """Whether it is a plain step on a CPU, in a row format that the kernel has."""
        table = step.centres.table
        known = table.device.type == "cpu" and table.dtype in FORMATS
        return known and step.plain_rule is not None and library("head") is not None

    def __init__(self, step: Step) -> None:
        self.step = step
        rule = step.plain_rule
        assert rule is not None, "`serves` has been asked"
        kernels = library("head")
        assert kernels is not None, "`serves` has been asked"
        self._kernels = kernels
        self._kernels.head_room.restype = c_int64
        table, samples = step.centres.table, len(step.batch)
        sample = step.sample.compact()
        own_row, own_sample = sample.own()
        self._rows: Rows = slice(0, len(step.centres)) if sample.rows is None else sample.rows
        self._num_rows = len(step.centres) if sample.rows is None else len(sample.rows)
        self._threads = torch.get_num_threads()
        self._kept = min(self._num_rows, step.logits_budget // (4 * max(samples, 1)))
        self._arguments = Arguments(
            num_kept=self._kept,
            num_own=len(own_row),
            first_class=step.centres.rows.start,
            dim=step.batch.shape[1],
            samples=samples,
            parts=table.shape[1],
            width=table.shape[2],
            format=FORMATS[table.dtype],
            tile=48 if samples < WIDE else 128,
            threads=self._threads,
            key_low=step.key.low,
            key_high=step.key.high,
            scale=step.scale,
            lr=step.lr,
            # Copies add up their gradients: each brings its share.
            momentum=rule.momentum / step.replicate.size,
            weight_decay=rule.weight_decay / step.replicate.size,
            limit=step.limit,
        )
        self._given = {
            "table": table,
            "batch": step.batch.contiguous(),
            "own_row": own_row,
            "own_sample": own_sample,
        }
        if sample.rows is not None:
            self._given["rows"] = sample.rows
        room = self._kernels.head_room(ctypes.byref(self._arguments))
        self._given["room"] = step.batch.new_empty(self._threads, room)

    def forward(self) -> tuple[Tensor, Tensor]:
        """As `Walk.forward`."""
        step = self.step
        step.centres.touch_(self._rows)
        self._given["logits"] = step.batch.new_empty(self._kept, len(step.batch))
        # Of each thread's part of the rows; relative to any finite maximum, none is a sum of 0.
        maximum = step.batch.new_full((self._threads, len(step.batch)), -1e30)
        total, own_cosine = torch.zeros_like(maximum), torch.zeros_like(maximum[0])
        places = range(self._num_rows)
        self._call("head_forward", places, maximum=maximum, sum=total, own_cosine=own_cosine)
        return torch.logsumexp(maximum + total.log(), dim=0), own_cosine

    def backward(
        self, log_sum: Tensor, own_cosine: Tensor, to_own: Tensor, factor: Tensor
    ) -> Tensor:
        """As `Walk.backward`."""
        step, copies = self.step, self.step.replicate
        self._arguments.factor = float(factor)
        self._given |= {
            "log_sum": log_sum.contiguous(),
            "own_cosine": own_cosine.contiguous(),
            "to_own": to_own.contiguous(),
        }
        parts = step.batch.new_zeros(self._threads, *step.batch.shape)
        everything = range(self._num_rows)
        if copies.size == 1:
            self._call("head_backward", everything, gradient=parts)
            self._arguments.num_kept = 0  # gradients lie there now
            return parts.sum(dim=0)
        for first in everything[::SHARED_ROWS]:
            places = everything[first : first + SHARED_ROWS]
            velocity = step.batch.new_empty(len(places), step.batch.shape[1])
            self._call("head_backward", places, gradient=parts, velocity=velocity)
            if step.lr:
                copies.all_reduce_(velocity)
                self._call("head_move", places, velocity=velocity)
        self._arguments.num_kept = 0
        return parts.sum(dim=0)

    def _call(self, function: str, places: range, **tensors: Tensor) -> None:
        self._arguments.first, self._arguments.last = places.start, places.stop
        for name, tensor in (self._given | tensors).items():
            setattr(self._arguments, name, tensor.data_ptr())
        self._kernels[function](ctypes.byref(self._arguments))
