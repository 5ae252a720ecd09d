"""The few values that pickles of verification sets need, built from checked parts.

numpy's own reconstruction trusts the pickle: a dtype may bring field offsets or object pointers,
and from there memory is read and written. Here a dtype is one of a short list, and an array is a
shape and raw bytes of just the right length.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

_MAX_NAME = 100
_MAX_AXES, _MAX_SIDE = 4, 2**32
_DTYPES = {"b1", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8"}


class PickleError(ValueError):
    """Where a pickle cannot be read, and why."""


class Array:
    """A numpy array as a pickle describes it; complete once `data` is set.

    Attributes:
        dtype: As numpy spells it, with byte order: `|u1`.
        shape: At most four axes.
        data: The elements, of just the length that dtype and shape ask for.
        order: `C` or `F`.
    """

    __slots__ = ("data", "dtype", "order", "shape")

    def __init__(self) -> None:
        self.dtype, self.order = "|u1", "C"
        self.shape: tuple[int, ...] = (0,)
        self.data: bytes | None = None

    def fill(self, dtype: object, shape: object, order: str, data: object) -> "Array":
        """Set everything, after checks; returns the array itself."""
        if not (isinstance(dtype, Dtype) and dtype.is_complete and isinstance(data, bytes)):
            raise PickleError("an array of other than numbers and raw bytes is refused")
        if not isinstance(shape, tuple) or len(shape) > _MAX_AXES:
            raise PickleError("the shape of an array is not a tuple of at most four numbers")
        if not all(type(side) is int and 0 <= side <= _MAX_SIDE for side in shape):
            raise PickleError("the shape of an array is not one of whole numbers")
        if math.prod(shape) * dtype.size != len(data):
            raise PickleError(f"an array of shape {shape} does not have {len(data)} bytes")
        self.dtype, self.shape, self.order, self.data = dtype.name, shape, order, data
        return self

    def numpy(self) -> NDArray[Any]:
        """The array; it shares `data` and is read-only."""
        if self.data is None:
            raise PickleError("an array has no content")
        flat: NDArray[Any] = np.frombuffer(self.data, self.dtype)
        return flat.reshape(self.shape, order="F" if self.order == "F" else "C")


class Text:
    """Text of a pickle, in latin-1: text beyond it occurs in no set."""

    __slots__ = ("latin1",)

    def __init__(self, text: str) -> None:
        self.latin1 = text.encode("latin-1")


class Dtype:
    """A dtype of numbers; complete once its state has named the byte order."""

    def __init__(self, code: str) -> None:
        self.code, self.order, self.is_complete = code, "|", False
        self.size = int(code[1])

    @property
    def name(self) -> str:
        """As numpy spells it."""
        return self.order + self.code

    def fill(self, state: object) -> None:
        """Set the byte order from the state in the pickle, after checks."""
        # Names, fields and subarrays are where numpy would trust the pickle.
        if not isinstance(state, tuple) or len(state) != 8:
            raise PickleError("a dtype of a kind that no set needs is refused")
        version, order, *fields, size, alignment, flags = state
        if version not in (3, 4) or fields != [None] * 3 or (size, alignment, flags) != (-1, -1, 0):
            raise PickleError("a dtype with fields is refused")
        self.order = word(order)
        if self.order not in ("|", "<", ">", "="):
            raise PickleError("a dtype has an unknown byte order")
        self.is_complete = True


def word(value: object) -> str:
    """A short string of a pickle, spelled in any way."""
    data = value.latin1 if isinstance(value, Text) else value
    if not isinstance(data, bytes) or len(data) > _MAX_NAME:
        raise PickleError("a name is not a short string")
    return data.decode("latin-1")


def _encode(text: object, codec: object) -> bytes:
    """Protocols 0 to 2 spell bytes as latin-1 text; other codecs may be slow."""
    if not isinstance(text, Text) or word(codec) not in ("latin1", "latin-1"):
        raise PickleError("_codecs.encode of other than latin1 text is refused")
    return text.latin1


def _bytes(*arguments: object) -> bytes:
    """`bytes()`, `bytearray(bytes)`, and Python 2's `bytearray(text, "latin-1")`."""
    if not arguments:
        return b""
    data = arguments[0] if len(arguments) == 1 else _encode(*arguments)
    if not isinstance(data, bytes):
        raise PickleError("bytes of other than bytes are refused")
    return data


def _dtype(code: object, *_: object) -> Dtype:
    if word(code) not in _DTYPES:
        raise PickleError(f"dtype {word(code)!a} is refused")
    return Dtype(word(code))


def _scalar(dtype: object, data: object) -> int:
    value = Array().fill(dtype, (), "C", data).numpy().item()
    return value if isinstance(value, bool) else int(value)


def _from_buffer(data: object, dtype: object, shape: object, order: object) -> Array:
    return Array().fill(dtype, shape, {"C": "C", "F": "F"}[word(order)], data)


def _reconstruct(kind: object, *_: object) -> Array:
    if kind != "ndarray":
        raise PickleError("an array of another class is refused")
    return Array()


CALLS: dict[str, tuple[tuple[int, ...], Callable[..., Any]]] = {
    "encode": ((2,), _encode),
    "bytes": ((0, 1, 2), _bytes),
    "dtype": ((1, 2, 3), _dtype),
    "scalar": ((2,), _scalar),
    "frombuffer": ((4,), _from_buffer),
    "reconstruct": ((3,), _reconstruct),
    "ndarray": ((), _reconstruct),
}
"""Numbers of arguments and what builds the value, by the names in `GLOBALS`."""

GLOBALS = {"_codecs.encode": "encode", "numpy.ndarray": "ndarray", "numpy.dtype": "dtype"} | {
    f"{module}.{kind}": "bytes"
    for module in ("builtins", "__builtin__")
    for kind in ("bytes", "bytearray")
}
"""What a pickle may name, and what it means here."""
for _core in ("numpy.core", "numpy._core"):  # before numpy 2, and since
    GLOBALS[f"{_core}.multiarray._reconstruct"] = "reconstruct"
    GLOBALS[f"{_core}.multiarray.scalar"] = "scalar"
    GLOBALS[f"{_core}.numeric._frombuffer"] = "frombuffer"
