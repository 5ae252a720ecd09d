"""Which rows of a shard join the softmax of a step: the classes of the batch, and a uniform rest.

A draw depends on labels alone, so it can run before the embeddings are there, and it has fixed
shapes and asks nothing of the device: no sort of the rows, no search for distinct numbers.
"""

import ctypes
from ctypes import c_int32, c_int64, c_uint32
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from facescale.head.share import Share
from facescale.kernels.cpu.build import library
from facescale.kernels.cuda import available, runs_on
from facescale.random import Key, Permutation

NONE = -1
"""In place of a row: an empty slot. In place of a place: the class is on another shard."""


@dataclass(frozen=True)
class Sample:
    """Rows of this shard that join the softmax of one step, and where the own classes are.

    As it is drawn, it has a fixed shape and its rows are in no order; `compact` sorts them.
    """

    step: int
    """Which draw of the head it is."""
    share: Share
    """Whose samples are in the batch of the step."""
    rows: Tensor | None
    """Different rows, and `NONE` in empty slots; (n,) int64. None: all rows of the shard."""
    place: Tensor
    """Where in `rows` the own class of each sample of the batch is, or `NONE`; (B,)."""
    bad: Tensor | None = None
    """Whether a label of the global batch is outside the classes, (); None: none is."""

    def compact(self) -> "Sample":
        """The same with sorted rows and without empty slots. On CUDA, the host waits for it."""
        if self.rows is None:
            return self
        here = self.place >= 0
        own = self.rows[self.place.where(here, 0)] if len(self.rows) else self.place
        # numpy sorts whole numbers several times faster than torch does.
        rows = torch.from_numpy(np.sort(self.rows.cpu().numpy())).to(own.device)
        rows = rows[torch.searchsorted(rows, 0) :]
        return replace(self, rows=rows, place=torch.searchsorted(rows, own).where(here, NONE))

    def own(self) -> tuple[Tensor, Tensor]:
        """Places of the own classes on this shard, sorted, and their samples; (t,), (t,)."""
        (sample,) = torch.where(self.place >= 0)
        place, order = self.place[sample].sort(stable=True)
        return place, sample[order]


def draw_rows(own: Tensor, num_rows: int, num_sample: int, key: Key) -> tuple[Tensor, Tensor]:
    """Draw `num_sample` rows out of `num_rows` at random, and add those of `own` that are missing.

    Beside the rows of `own`, the drawn ones are a uniform sample without replacement. The work is
    O(num_sample): drawn row j is place j of a random permutation, whose inverse says whether a row
    was drawn.

    Args:
        own: Row of each sample of the global batch; outside [0, num_rows) it is on another shard.
            (B,) int64.
        num_rows: Rows of this shard.
        num_sample: How many to draw, at most `num_rows`.
        key: Decides the draw.

    Returns:
        (num_sample + B,) rows, with `NONE` in slots that stay empty, and the place of each of `own`
        among them, or `NONE`; (B,). Source: An et al., Partial FC, CVPR 2022, section 3.2.
    """
    if not num_rows:
        return torch.full_like(own, NONE), torch.full_like(own, NONE)
    permutation = Permutation(num_rows, key)
    if available() and runs_on(own.device):
        from facescale.kernels.cuda import draw  # not before a device needs it

        return draw.draw_rows(own, num_sample, permutation)
    slots = torch.arange(len(own), device=own.device)
    here = (own >= 0) & (own < num_rows)
    drawn = _permute(permutation, torch.arange(num_sample, device=own.device), inverse=False)
    place = _permute(permutation, own.where(here, 0), inverse=True)
    # A class that was not drawn gets the slot of its first sample.
    first = _first_of_equals(own)
    missing = here & (place >= num_sample)
    extra = own.where(missing & (first == slots), NONE)
    place = torch.where(missing, num_sample + first, place).where(here, NONE)
    return torch.cat([drawn, extra]), place


def _first_of_equals(numbers: Tensor) -> Tensor:
    """Where each of `numbers` stands for the first time; (B,)."""
    values, order = numbers.sort(stable=True)
    starts = torch.arange(len(values), device=values.device)
    starts[1:] *= values[1:] != values[:-1]
    first = starts.cummax(0).values
    return torch.empty_like(order).scatter_(0, order, order[first])


class _Arguments(ctypes.Structure):
    """As `Permutation` in kernels/cpu/random.h."""

    _fields_ = (
        *((name, c_int64) for name in ("size", "rows", "columns")),
        *((name, c_uint32) for name in ("low", "high")),
        ("rounds", c_int32),
    )


def _permute(permutation: Permutation, places: Tensor, *, inverse: bool) -> Tensor:
    """`permutation` or its inverse, compiled where that can be: torch takes 20 times as long."""
    kernels = library("head") if places.device.type == "cpu" else None
    if kernels is None:
        return permutation.inverse(places) if inverse else permutation(places)
    arguments = _Arguments(
        permutation.size, *permutation.sides, *permutation.key, permutation.ROUNDS
    )
    out = torch.empty_like(places)
    kernels.head_permute(
        ctypes.byref(arguments),
        ctypes.c_void_p(places.data_ptr()),
        ctypes.c_void_p(out.data_ptr()),
        c_int64(len(places)),
        c_int32(inverse),
        c_int32(torch.get_num_threads()),
    )
    return out
