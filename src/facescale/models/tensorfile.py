"""Safetensors files: written without a second copy in memory, and checked when they are opened.

A file is a length, a JSON header, and the bytes of the tensors: reading one executes nothing.
"""

import json
import struct
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from facescale.files import require_regular

TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""The types of elements that are read and written, by their names in the header."""
MAX_TENSORS = 100_000  # a network has thousands; more would only fill the memory
_NAMES = {dtype: name for name, dtype in TYPES.items()}
_PIECE_BYTES = 64 << 20  # what is copied from a device at a time


@dataclass(frozen=True)
class Kind:
    """Shape and type of a tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        """Size of such a tensor."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize

    def __str__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')} {list(self.shape)}"


def kind_of(tensor: Tensor) -> Kind:
    """Shape and type of `tensor`."""
    return Kind(tuple(tensor.shape), tensor.dtype)


@dataclass(frozen=True)
class Pieces:
    """A tensor that is made while it is written, piece by piece along its first dimension."""

    kind: Kind
    pieces: Iterable[Tensor]


def encode(
    tensors: Mapping[str, Tensor | Pieces], metadata: Mapping[str, str] | None = None
) -> Iterator[bytes | memoryview]:
    """The bytes of a safetensors file, for `files.write_whole`; at most a piece is copied."""
    kinds = {name: t.kind if isinstance(t, Pieces) else kind_of(t) for name, t in tensors.items()}
    order = sorted(kinds, key=lambda name: (-kinds[name].dtype.itemsize, name))  # aligned
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    start = 0
    for name in order:
        kind, stop = kinds[name], start + kinds[name].num_bytes
        offsets = [start, stop]
        header[name] = {
            "dtype": _NAMES[kind.dtype],
            "shape": kind.shape,
            "data_offsets": offsets,
        }
        start = stop
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield struct.pack("<Q", len(text)) + text
    for name in order:
        tensor = tensors[name]
        for piece in tensor.pieces if isinstance(tensor, Pieces) else [tensor]:
            yield from _bytes_of(piece)


def _bytes_of(tensor: Tensor) -> Iterator[memoryview]:
    flat = tensor.detach().contiguous().view(-1)
    for piece in flat.split(_PIECE_BYTES // flat.element_size()):
        yield piece.cpu().view(torch.uint8).numpy().data


class TensorFile:
    """An open safetensors file: what it holds, and the tensors on demand."""

    def __init__(self, path: Path, file: Any) -> None:
        self.path, self._file = path, file
        self.metadata: dict[str, str] = file.metadata() or {}
        names = file.keys()
        if len(names) > MAX_TENSORS:
            raise ValueError(f"{path} has {len(names)} tensors; {MAX_TENSORS} are the most")
        self.kinds = {name: self._kind(name) for name in names}

    def _kind(self, name: str) -> Kind:
        part = self._file.get_slice(name)
        if part.get_dtype() not in TYPES:
            raise ValueError(f"{self.path}: {name:.100} has elements of type {part.get_dtype()}")
        return Kind(tuple(part.get_shape()), TYPES[part.get_dtype()])

    def tensor(self, name: str) -> Tensor:
        """The whole tensor."""
        found: Tensor = self._file.get_tensor(name)
        return found

    def rows(self, name: str, first: int, stop: int) -> Tensor:
        """Rows [first, stop) of a tensor along its first dimension; reads no others."""
        found: Tensor = self._file.get_slice(name)[first:stop]
        return found


@contextmanager
def open_tensors(path: Path) -> Iterator[TensorFile]:
    """Open a safetensors file; its header agrees with its size.

    Raises:
        OSError: It cannot be opened.
        ValueError: It is not a regular file, not a safetensors file, or damaged.
    """
    require_regular(path)
    try:
        with safe_open(path, "pt") as file:
            yield TensorFile(path, file)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file: {error!s:.200}") from error
