"""State dicts that others saved with torch: arcface_torch's `model.pt`, AdaFace's `.ckpt`.

The file is a pickle, of which only tensors and plain containers are read; nothing in it is run.
"""

import io
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from facescale.files import write_whole
from facescale.models.names import printable

WRAPPERS = ("state_dict_backbone", "state_dict", "model_state_dict", "model", "backbone", "net")
"""Where a training script keeps the network's state dict inside a larger checkpoint."""
PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.", "net.")
"""What DataParallel, torch.compile and enclosing modules put before each name."""
_MAX_DEPTH = 4  # of wrappers, and of prefixes
_REMEDY = "save the network's state_dict() with torch.save, or as .safetensors"


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of a `.pt`, `.pth` or `.ckpt` by name, without wrappers.

    Raises:
        OSError: It cannot be opened.
        ValueError: It is damaged, holds other things than tensors, or would run code.
    """
    return state_dict_in(read_plain(path), path)


def state_dict_in(found: Any, path: Path) -> dict[str, Tensor]:
    """The tensors by name in what `read_plain` gave; ValueError for other things than tensors."""
    for _ in range(_MAX_DEPTH):
        inner = [found.get(name) for name in WRAPPERS] if isinstance(found, Mapping) else []
        found = next((value for value in inner if isinstance(value, Mapping)), found)
    if not isinstance(found, Mapping):
        raise ValueError(f"{path} holds a {type(found).__name__}, not a state dict; {_REMEDY}")
    for name, value in found.items():
        if not isinstance(name, str):
            raise ValueError(f"{path}: {name!s:.50} is not the name of a tensor; {_REMEDY}")
        if not is_plain(value):
            raise ValueError(f"{path}: {name:.50} is not a plain tensor; {_REMEDY}")
    return dict(found)


def read_plain(path: Path) -> Any:
    """The tensors and plain containers of a file of torch.save; OSError, ValueError as above."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                entries = archive.infolist()
            if any(entry.filename.endswith("/constants.pkl") for entry in entries):
                raise ValueError(f"it is a TorchScript archive; {_REMEDY}")
            if any(entry.compress_type for entry in entries):
                raise ValueError("its entries are compressed, as torch.save never does")
        with warnings.catch_warnings(action="ignore"):  # of sparse tensors, refused by the caller
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # torch has many types for a damaged file
        raise ValueError(f"{path} cannot be read as weights: {_reason(str(error))}") from error


def save_state_dict(path: Path, module: nn.Module) -> None:
    """Write the weights as `torch.save` does, on the CPU; `torch.load` needs no class of ours."""
    content = io.BytesIO()
    weights = {name: value.cpu().contiguous() for name, value in module.state_dict().items()}
    torch.save(weights, content)
    write_whole(path, [content.getvalue()])


def _reason(message: str) -> str:
    """What matters of torch's message, whose advice is to run the code that the file names."""
    if named := re.search(r"GLOBAL (\S+)|class (\S+)|whose module (\S+) is blocked", message):
        name = next(filter(None, named.groups()))
        return f"it holds a Python object ({name:.80}), which could run code; {_REMEDY}"
    if message.startswith("Weights only") or not message:
        return "it is damaged, or not a file of torch.save"
    return f"{message.splitlines()[0]:.150}"


def is_plain(value: object) -> TypeGuard[Tensor]:
    """Whether this is a tensor of numbers in memory that its file has filled."""
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and not value.is_complex()
        and not value.is_quantized
        # a view that repeats its elements would let a small file ask for any amount of memory
        and value.nbytes <= value.untyped_storage().nbytes()
    )


def beside(tensors: dict[str, Tensor]) -> list[str]:
    """Names of the tensors that `without_prefixes` leaves out, fit for a terminal."""
    kept = {id(value) for value in without_prefixes(tensors).values()}
    return [printable(name) for name, value in tensors.items() if id(value) not in kept]


def without_prefixes(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The network's own names; what lies beside the prefixed ones (a head) is left out."""
    for _ in range(_MAX_DEPTH):
        for prefix in PREFIXES:
            under = [name for name in tensors if name.startswith(prefix)]
            if len(under) > len(tensors) / 2:
                tensors = {name.removeprefix(prefix): tensors[name] for name in under}
    return tensors
