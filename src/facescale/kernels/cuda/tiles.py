"""Tile sizes of the head's kernels, for each way to round a product.

Compiled for sm_80 and sm_90, they spill no register, and the shared memory fits.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch

SPLITS = 64
"""Parts of the rows, where their product with the batch is summed up."""

Precision = Literal["tf32x3", "tf32", "bf16"]


@dataclass(frozen=True)
class Tile:
    """What one program works on, and how it is compiled.

    Attributes:
        rows: Rows of the table.
        samples: Samples of the batch, at most.
        columns: Numbers of a row, at a time or in all.
        warps: Of 32 threads.
        stages: Of the pipeline that fetches the next tile meanwhile.
    """

    rows: int
    samples: int
    columns: int
    warps: int
    stages: int


TILES: dict[str, dict[Precision, Tile]] = {
    "forward": {
        "tf32x3": Tile(64, 128, 32, 8, 3),
        "tf32": Tile(64, 128, 32, 8, 3),
        "bf16": Tile(64, 128, 64, 8, 3),
    },
    "probability": {"tf32": Tile(32, 128, 0, 8, 1)},
    "to_batch": {
        "tf32x3": Tile(32, 128, 64, 8, 3),
        "tf32": Tile(32, 128, 128, 8, 3),
        "bf16": Tile(32, 128, 128, 8, 2),
    },
    "update": {
        "tf32x3": Tile(64, 32, 64, 8, 3),
        "tf32": Tile(64, 32, 64, 8, 3),
        "bf16": Tile(64, 64, 64, 8, 3),
    },
    "update int8": {
        "tf32x3": Tile(16, 32, 0, 8, 2),
        "tf32": Tile(16, 32, 0, 8, 2),
        "bf16": Tile(16, 64, 0, 8, 2),
    },
    "apply": {"tf32": Tile(32, 0, 128, 4, 1)},
    "apply int8": {"tf32": Tile(8, 0, 0, 4, 1)},
    "start": {"tf32": Tile(8, 0, 0, 4, 1)},
}
"""By kernel and product; kernels without a product have one entry. int8 rows have all columns."""


MEASURED: dict[int, dict[str, dict[Precision, Tile]]] = {
    90: {
        "forward": {
            "tf32x3": Tile(64, 128, 32, 4, 3),
            "bf16": Tile(64, 128, 64, 4, 3),
        },
        "to_batch": {
            "tf32x3": Tile(32, 128, 64, 4, 2),
            "bf16": Tile(32, 128, 256, 8, 3),
        },
        "update": {
            "tf32x3": Tile(32, 32, 128, 4, 3),
            "bf16": Tile(64, 32, 64, 8, 3),
        },
    }
}
"""By compute capability: those that were the fastest on such a GPU, in place of `TILES`."""

_assumed = ContextVar("_assumed", default=80)


@contextmanager
def assumed(capability: int) -> Iterator[None]:
    """Inside, tiles of tensors that are on no GPU are those for a GPU of this capability."""
    token = _assumed.set(capability)
    try:
        yield
    finally:
        _assumed.reset(token)


def tile_for(kernel: str, precision: Precision, device: torch.device) -> Tile:
    """The tile of a kernel on a device."""
    capability = _capability(device) if device.type == "cuda" else _assumed.get()
    fastest = MEASURED.get(capability, {}).get(kernel, {}).get(precision)
    return TILES[kernel][precision] if fastest is None else fastest


@cache
def _capability(device: torch.device) -> int:
    if not torch.cuda.is_available():
        return 0  # of a plan
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def power_of_2(number: int) -> int:
    """The smallest power of 2 that is at least `number` and 16."""
    return max(16, 1 << (number - 1).bit_length())


def sample_tile(samples: int, most: int) -> int:
    """Samples of a tile: no more than there are, but for a power of 2 that is at least 32."""
    return min(most, max(32, power_of_2(samples)))
