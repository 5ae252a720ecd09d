"""Checkpoints of format 2, which torch.distributed.checkpoint wrote: converted, once and for all.

They are pickles. Those of `.metadata` are read by an unpickler that makes nothing but plain records
(any other class ends it), those of the tensors by `torch.load(weights_only=True)`. That keeps out
what is known; still convert none whose source you do not trust.
"""

import io
import pickle
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from facescale.checkpoint import folder, record, tensors
from facescale.checkpoint.folder import Part
from facescale.files import checksum
from facescale.models.tensorfile import TYPES, Kind, Pieces

FORMAT = 2
KEPT = ".format2"
"""Appended to the name of a checkpoint that has been converted."""
_STATE = "optimizer.state."


def convert(path: Path) -> Path:
    """Write the checkpoint `path` of format 2 anew under its name; the old one is kept beside it.

    Returns the path of the new one; the old one is `step-N.format2`.

    Raises:
        OSError: A file cannot be read or written.
        ValueError: It is not of format 2, or damaged.
    """
    _check_sums(path)
    stored = _Stored(path)
    run, ranks = _read_run(path, stored)
    shared = {
        _new_name(name): stored.tensor(name)
        for name in stored.shapes
        if name.startswith(("backbone.", _STATE))
    }
    statistics = stored.tensor("statistics")
    if statistics.shape[:1] != (ranks,):
        raise ValueError(f"{path}: its statistics are not of {ranks} ranks")
    finite = tensors.are_finite(shared.values()) and all(
        map(tensors.rows_are_finite, stored.pieces("centres"))
    )
    dtype = next(stored.pieces("centres")).dtype
    kind = Kind(stored.shapes["centres"], dtype)
    final = path.with_name(path.name.removesuffix(KEPT))
    partial = path.with_name(f".{final.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        parts = [
            Part(
                shared=shared,
                own={"statistics": statistics[rank]},
                centres=Pieces(kind, stored.pieces("centres")),
                first=0 if rank == 0 else None,
                finite=finite,
            )
            for rank in range(ranks)
        ]
        folder.write_parts(partial, run, parts)
        if path == final:
            path.rename(path.with_name(path.name + KEPT))
        partial.rename(final)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return final


def _check_sums(path: Path) -> None:
    """ValueError where a file differs from its checksum, or there is no old checkpoint."""
    if not (path / folder.OLD_METADATA).exists():
        raise ValueError(
            f"{path} has no {folder.OLD_METADATA}: it is not of format {FORMAT}, and needs no "
            "conversion, or a part of it is missing"
        )
    sums = re.findall(
        r"^([0-9a-f]{64})  (__\d+_\d+\.distcp|\.metadata|run\.json)$",
        (path / folder.SUMS).read_text(errors="replace"),
        re.MULTILINE,
    )
    if {".metadata", record.NAME} - {name for _, name in sums}:
        raise ValueError(f"{path / folder.SUMS} is not readable")
    for expected, name in sums:
        if checksum(path / name) != expected:
            raise ValueError(f"{path / name} differs from its checksum")


def _new_name(name: str) -> str:
    if name.startswith(_STATE):
        parameter, _, key = name.removeprefix(_STATE).rpartition(".")
        return f"optimizer/{parameter}/{key}"
    return f"backbone/{name.removeprefix('backbone.')}"


def _read_run(path: Path, stored: "_Stored") -> tuple[record.Run, int]:
    """The numbers of a checkpoint of format 2, and how many ranks wrote it."""
    values = record.read_json(path / record.NAME)
    if values.get("format") != FORMAT:
        raise ValueError(f"{path} is not of format {FORMAT}")
    adamw = any(name.endswith(".exp_avg") for name in stored.shapes)
    values |= {"people": None, "optimizer": "AdamW" if adamw else "SGD"}
    return record.run_from(values), int(values["ranks"])


class _Stored:
    """The tensors of a checkpoint of format 2, by torch's dotted names."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            with (path / folder.OLD_METADATA).open("rb") as file:
                metadata = _Unpickler(file).load().fields
            self.shapes: dict[str, tuple[int, ...]] = {
                name: tuple(entry.fields["size"])
                for name, entry in metadata["state_dict_metadata"].items()
                if "size" in entry.fields
            }
            self._chunks: dict[str, list[tuple[tuple[int, ...], Any]]] = {}
            for index, where in metadata["storage_data"].items():
                chunk = (tuple(index.fields.get("offset") or ()), where.fields)
                self._chunks.setdefault(index.fields["fqn"], []).append(chunk)
        except OSError:
            raise
        except Exception as error:  # whatever a damaged pickle comes to
            raise ValueError(f"{path}/{folder.OLD_METADATA} is not readable: {error}") from error
        for name in ("centres", "statistics"):
            if name not in self.shapes:
                raise ValueError(f"{path} has no {name}")

    def pieces(self, name: str) -> Iterator[Tensor]:
        """The parts of a tensor, cut along its first dimension, in order."""
        shape, rows = self.shapes[name], 0
        for offsets, where in sorted(self._chunks[name], key=lambda chunk: chunk[0]):
            piece = self._read(where)
            if offsets[:1] not in ((), (rows,)) or piece.shape[1:] != shape[1:]:
                raise ValueError(f"{self._path}: the parts of {name:.100} do not fit")
            rows += len(piece) if shape else 0
            yield piece
        if shape and rows != shape[0]:
            raise ValueError(f"{self._path}: of {name:.100} there are {rows} rows, not {shape[0]}")

    def tensor(self, name: str) -> Tensor:
        """A whole tensor."""
        pieces = list(self.pieces(name))
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def _read(self, where: dict[str, Any]) -> Tensor:
        name = Path(where["relative_path"]).name
        with (self._path / name).open("rb") as file:
            file.seek(where["offset"])
            content = io.BytesIO(file.read(where["length"]))
        try:
            found = torch.load(content, map_location="cpu", weights_only=True)
        except Exception as error:
            raise ValueError(f"{self._path / name} is damaged: {type(error).__name__}") from error
        if not isinstance(found, Tensor) or found.dtype not in TYPES.values():
            raise ValueError(f"{self._path / name} is damaged: a {type(found).__name__}")
        return found


class _Plain:
    """In place of each class of torch's metadata: what it was made of, and nothing that runs."""

    fields: dict[str, Any]

    def __new__(cls, *_: object) -> Self:
        made = super().__new__(cls)
        made.fields = {}
        return made

    def __setstate__(self, state: object) -> None:
        self.fields = state if isinstance(state, dict) else {}


def _member(kind: object, name: object) -> _Plain:
    """In place of `getattr`, by which Python 3.11.0 to 3.11.2 pickle a member of an enum."""
    if kind is not _Plain:
        raise pickle.UnpicklingError(f"a member {name!r:.60} does not belong there")
    return _Plain()


class _Unpickler(pickle.Unpickler):
    """Knows the names that torch's metadata consists of, and makes plain records of them."""

    _metadata = frozenset(
        f"torch.distributed.checkpoint.{name}"
        for name in (
            "metadata.Metadata",
            "metadata.MetadataIndex",
            "metadata.TensorStorageMetadata",
            "metadata.BytesStorageMetadata",
            "metadata.ChunkStorageMetadata",
            "metadata.TensorProperties",
            "metadata.StorageMeta",
            "metadata._MEM_FORMAT_ENCODING",
            "filesystem._StorageInfo",
        )
    ) | {"pathlib.PosixPath", "pathlib._local.PosixPath", "torch.serialization._get_layout"}

    def find_class(self, module: str, name: str) -> Any:
        """`tuple` for torch.Size, a name for a type of elements, `_Plain` for known classes."""
        if (module, name) == ("torch", "Size"):
            return tuple
        if (module, name) == ("builtins", "getattr"):
            return _member
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return name
        if f"{module}.{name}" in self._metadata:
            return _Plain
        raise pickle.UnpicklingError(f"{module}.{name} does not belong there".replace("\n", " "))
