"""Reads pickles of verification sets without an unpickler: no import, no call, no object state.

A set holds images (bytes or uint8 arrays) and flags (booleans). The interpreter knows the opcodes
that spell such values in protocols 0 to 5, by Python 2 and 3, and refuses every other one. Globals
are names to it: the few that `bytes` and numpy arrays need are recognised, and the value is built
here from checked parts. Source for the opcodes: CPython's `pickletools`.
"""

import codecs
import re
import struct
from collections.abc import Callable
from typing import Any, BinaryIO

from facescale.data.picklevalues import CALLS, GLOBALS, Array, Dtype, PickleError, Text, word

MAX_OPCODES = 5_000_000
"""LFW's 12,000 images take 108,000; this many are interpreted in about two seconds."""

MAX_ITEM = 2**26
"""Bytes of one string; a header may state any number."""

_MAX_MARKS, _MAX_LINE, _MAX_NAME = 100, 32, 100


def read_pickle(file: BinaryIO) -> Any:
    """The value of the pickle that begins here: lists, tuples, bytes, bools, ints, `Array`s, None.

    Text that no `_codecs.encode` turns into bytes stays an opaque object. Bytearrays become bytes.

    Raises:
        PickleError: Damaged, too large, or with anything that a verification set does not need.
            The message begins with the byte at which reading stopped.
    """
    machine = _Machine(file)
    try:
        return machine.run()
    except (ValueError, TypeError, IndexError, KeyError, struct.error) as error:
        reason = "the stack is too short" if isinstance(error, IndexError) else error
        raise PickleError(f"byte {file.tell()}: {reason}") from error


class _Machine:
    """The stack machine of pickle; `str` values on its stack are the names of globals."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: list[Any] = []
        self.num_opcodes = 0

    def run(self) -> Any:
        read, steps = self.file.read, _STEPS
        while (code := read(1)) != b".":
            step = steps.get(code)
            if step is None:
                raise PickleError(
                    f"opcode {code!r} is refused: no verification set needs it"
                    if code
                    else "the file ends inside the pickle"
                )
            self.num_opcodes += 1
            if self.num_opcodes > MAX_OPCODES:
                raise PickleError(f"more than {MAX_OPCODES} opcodes")
            step(self)
        return self.stack.pop()

    def take(self, count: int) -> bytes:
        if not 0 <= count <= MAX_ITEM:
            raise PickleError(f"a string of {count} bytes; the limit is {MAX_ITEM}")
        data = self.file.read(count)
        if len(data) != count:
            raise PickleError("the file ends inside a string")
        return data

    def number(self, layout: struct.Struct) -> int:
        (value,) = layout.unpack(self.file.read(layout.size))
        return int(value)

    def line(self, limit: int = _MAX_LINE) -> bytes:
        text = self.file.readline(limit + 1)
        if not text.endswith(b"\n"):
            raise PickleError(f"a line is cut, or longer than {limit} bytes")
        return text[:-1]

    def since_mark(self) -> list[Any]:
        if not self.marks:
            raise PickleError("there is no mark")
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def mark(self) -> None:
        if len(self.marks) == _MAX_MARKS:
            raise PickleError(f"more than {_MAX_MARKS} open marks")
        self.marks.append(len(self.stack))

    def put(self, place: int) -> None:
        # A pickler numbers its memo without gaps, so no place passes the number of opcodes.
        if not 0 <= place <= self.num_opcodes:
            raise PickleError(f"memo {place} in a pickle of {self.num_opcodes} opcodes so far")
        if place >= len(self.memo):
            self.memo.extend([_UNSET] * (place + 1 - len(self.memo)))
        self.memo[place] = self.stack[-1]

    def get(self, place: int) -> None:
        value = self.memo[place] if 0 <= place < len(self.memo) else _UNSET
        if value is _UNSET:
            raise PickleError(f"memo {place} was never set")
        self.stack.append(value)

    def append(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not list:
            raise PickleError("an item for what is no list")
        target.extend(items)

    def tuple(self, count: int) -> None:
        if len(self.stack) < count:
            raise IndexError
        self.stack[-count:] = [tuple(self.stack[-count:])]

    def name(self, module: str, name: str) -> None:
        full_name = f"{module}.{name}"
        if full_name not in GLOBALS:
            raise PickleError(f"it asks for {ascii(full_name)[1:-1]}, which is refused")
        self.stack.append(GLOBALS[full_name])

    def stack_name(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.name(word(module), word(name))

    def reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if not isinstance(arguments, tuple) or not isinstance(function, str):
            raise PickleError("a call of what is no function is refused")
        if len(arguments) not in CALLS[function][0]:
            raise PickleError(f"{function} with {len(arguments)} arguments is refused")
        self.stack.append(CALLS[function][1](*arguments))

    def build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, Array) and isinstance(state, tuple) and len(state) == 5:
            _, shape, dtype, is_fortran, data = state
            target.fill(dtype, shape, "F" if is_fortran is True else "C", data)
        elif isinstance(target, Dtype):
            target.fill(state)
        else:
            raise PickleError("the state of an object is refused")

    def long(self, count: int) -> int:
        if not 0 <= count <= 16:
            raise PickleError(f"a number of {count} bytes")
        return int.from_bytes(self.take(count), "little", signed=True)


_UNSET = object()
_U1, _U2, _I4, _U4, _U8 = (struct.Struct(layout) for layout in ("<B", "<H", "<i", "<I", "<Q"))


_REPR = re.compile(rb"""(?:[^\\]|\\[\\'"nrt]|\\x[0-9a-f]{2})*+""", re.DOTALL)


def _quoted(line: bytes) -> bytes:
    """Python 2's repr of a string."""
    if len(line) < 2 or line[0] != line[-1] or line[:1] not in (b"'", b'"'):
        raise PickleError("a string without quotes")
    if not _REPR.fullmatch(line, 1, len(line) - 1):  # others make `escape_decode` warn
        raise PickleError("a string with an escape that repr does not write")
    text: bytes = codecs.escape_decode(line[1:-1])[0]
    return text


def _int(line: bytes) -> int:
    return (
        line == b"01" if line in (b"00", b"01") else int(line)
    )  # 01 is how protocol 0 spells True


def _protocol(machine: _Machine) -> None:
    if (protocol := machine.number(_U1)) > 5:
        raise PickleError(f"pickle protocol {protocol} is unknown")


def _push(value: Callable[[_Machine], Any]) -> Callable[[_Machine], None]:
    return lambda machine: machine.stack.append(value(machine))


_Step = Callable[[_Machine], None]
_STEPS: dict[bytes, _Step] = {
    b"\x80": _protocol,
    b"\x95": lambda m: (m.number(_U8), None)[1],  # FRAME
    b"(": _Machine.mark,
    b"N": _push(lambda m: None),
    b"\x88": _push(lambda m: True),
    b"\x89": _push(lambda m: False),
    b"I": _push(lambda m: _int(m.line())),
    b"L": _push(lambda m: int(m.line().removesuffix(b"L"))),
    b"J": _push(lambda m: m.number(_I4)),
    b"K": _push(lambda m: m.number(_U1)),
    b"M": _push(lambda m: m.number(_U2)),
    b"\x8a": _push(lambda m: m.long(m.number(_U1))),
    b"\x8b": _push(lambda m: m.long(m.number(_I4))),
    b"S": _push(lambda m: _quoted(m.line(MAX_ITEM))),
    b"T": _push(lambda m: m.take(m.number(_I4))),
    b"U": _push(lambda m: m.take(m.number(_U1))),
    b"B": _push(lambda m: m.take(m.number(_U4))),
    b"C": _push(lambda m: m.take(m.number(_U1))),
    b"\x8e": _push(lambda m: m.take(m.number(_U8))),
    b"\x96": _push(lambda m: m.take(m.number(_U8))),  # BYTEARRAY8
    b"V": _push(lambda m: Text(m.line(MAX_ITEM).decode("raw-unicode-escape"))),
    b"X": _push(lambda m: Text(m.take(m.number(_U4)).decode())),
    b"\x8c": _push(lambda m: Text(m.take(m.number(_U1)).decode())),
    b"\x8d": _push(lambda m: Text(m.take(m.number(_U8)).decode())),
    b")": _push(lambda m: ()),
    b"\x85": lambda m: m.tuple(1),
    b"\x86": lambda m: m.tuple(2),
    b"\x87": lambda m: m.tuple(3),
    b"t": _push(lambda m: tuple(m.since_mark())),
    b"]": _push(lambda m: []),
    b"l": _push(lambda m: m.since_mark()),
    b"a": lambda m: m.append([m.stack.pop()]),
    b"e": lambda m: m.append(m.since_mark()),
    b"p": lambda m: m.put(int(m.line())),
    b"q": lambda m: m.put(m.number(_U1)),
    b"r": lambda m: m.put(m.number(_U4)),
    b"\x94": lambda m: m.put(len(m.memo)),
    b"g": lambda m: m.get(int(m.line())),
    b"h": lambda m: m.get(m.number(_U1)),
    b"j": lambda m: m.get(m.number(_U4)),
    b"c": lambda m: m.name(m.line(_MAX_NAME).decode(), m.line(_MAX_NAME).decode()),
    b"\x93": _Machine.stack_name,
    b"R": _Machine.reduce,
    b"b": _Machine.build,
}
