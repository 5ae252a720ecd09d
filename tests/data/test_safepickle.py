"""Pickles are interpreted as `pickle.loads` would, as far as sets need it, and never executed."""

import io
import pickle
import struct
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from facescale.data import safepickle
from facescale.data.pairs import load_pairs
from facescale.data.picklevalues import Array, PickleError, Text
from facescale.data.safepickle import read_pickle

NUMBERS = [np.dtype(code) for code in ("?", "u1", "i2", "<u4", ">i4", "i8", ">u8")]


def read(data: bytes) -> Any:
    return read_pickle(io.BytesIO(data))


def plain(value: Any) -> Any:
    """What `pickle.loads` gives: text and arrays in place of our objects."""
    if isinstance(value, list | tuple):
        return type(value)(plain(item) for item in value)
    if isinstance(value, Array):
        return (value.numpy().dtype, value.numpy().shape, value.numpy().tobytes())
    return value.latin1.decode("latin-1") if isinstance(value, Text) else value


def spelled(value: Any) -> Any:
    """The truth in the same words."""
    if isinstance(value, list | tuple):
        return type(value)(spelled(item) for item in value)
    if isinstance(value, np.ndarray):
        return (value.dtype, value.shape, value.tobytes())
    if isinstance(value, np.generic):
        return value.item()
    return bytes(value) if isinstance(value, bytearray) else value


def array(draw: tuple[np.dtype[Any], list[int], bool]) -> np.ndarray[Any, Any]:
    dtype, shape, is_fortran = draw
    content = np.arange(int(np.prod(shape))).reshape(shape).astype(dtype)
    return np.asfortranarray(content) if is_fortran else content


scalars = st.sampled_from(NUMBERS).map(lambda dtype: dtype.type(1))
arrays = st.tuples(
    st.sampled_from(NUMBERS), st.lists(st.integers(0, 3), min_size=1, max_size=3), st.booleans()
).map(array)
latin1 = st.text(st.characters(max_codepoint=255), max_size=20)
leaves = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**63), 2**63), st.binary(max_size=300), latin1
)
values = st.recursive(
    st.one_of(leaves, st.binary(max_size=20).map(bytearray), scalars, arrays),
    lambda inner: st.one_of(st.lists(inner, max_size=5), st.lists(inner, max_size=4).map(tuple)),
    max_leaves=20,
)


@settings(deadline=None)
@given(value=values, protocol=st.integers(0, 5))
def test_any_value_of_a_set_is_read_as_pickle_reads_it(value: Any, protocol: int) -> None:
    assert plain(read(pickle.dumps(value, protocol))) == spelled(value)


SET = pickle.dumps(([np.arange(5, dtype=np.uint8), b"x" * 300, "\xff"], [np.True_, False, 3]), 2)


@settings(deadline=None, max_examples=300)
@given(
    protocol=st.integers(0, 5),
    edits=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=8),
    cut=st.one_of(st.just(0), st.integers(0, 10**6)),
)
def test_a_damaged_pickle_is_read_or_refused_in_one_line(
    protocol: int, edits: list[tuple[int, int]], cut: int
) -> None:
    data = bytearray(pickle.dumps(pickle.loads(SET, encoding="latin-1"), protocol))
    for place, byte in edits:
        data[place % len(data)] = byte
    try:
        read(bytes(data[: len(data) - cut % len(data)]))
    except PickleError as error:
        assert str(error).startswith("byte ")  # noqa: PT017
        assert len(str(error)) < 300  # noqa: PT017
        assert str(error).isprintable()  # noqa: PT017


def test_python_2_wrote_strings_as_their_repr() -> None:
    content = bytes(range(256))
    line = repr(content)[1:].encode()
    assert (
        read(b"S" + line + b"\n.")
        == content
        == pickle.loads(b"S" + line + b"\n.", encoding="bytes")
    )
    for wrong in (b"S'\\q'\n.", b"S'\\x4'\n.", b"S'a\n.", b"Sa'\n.", b"S'\n."):
        with pytest.raises(PickleError, match="a string with"):
            read(wrong)


def test_a_numpy_array_is_read_only_and_shares_its_bytes() -> None:
    content = np.arange(12, dtype=">i4").reshape(3, 4)
    found = read(pickle.dumps(content, 2))
    np.testing.assert_array_equal(found.numpy(), content)
    with pytest.raises(ValueError, match="read-only"):
        found.numpy()[0] = 1


@pytest.mark.parametrize(
    "command",
    [
        b"cbuiltins\neval\n(S'1'\ntR.",
        b"cos\nsystem\n(S'true'\ntR.",
        b"cnumpy\nload\n(S'x'\ntR.",
        b"cnumpy.core.multiarray\n_reconstruct.__globals__\n.",
        b"\x80\x04\x8c\x05numpy\x8c\x11ndarray.__class__\x93.",
        b"(S'1'\nibuiltins\neval\n.",
        b"(S'1'\ncbuiltins\nbytes\no.",  # OBJ
        b"cnumpy\ndtype\n)\x81.",  # NEWOBJ
        b"\x82\x01.",  # EXT1
        b"P1\n.",  # PERSID
        b"\x97.",  # NEXT_BUFFER
        b"}(S'a'\nI1\nu.",  # a dict
        b"cnumpy\ndtype\n(S'u1'\nI00\nI01\ntRS'x'\nI1\nRR.",
        b"cnumpy\nndarray\n(I100\ntR.",
        b"]I1\nb.",  # state for a list
        b"cnumpy\ndtype\n(S'O'\nI00\nI01\ntR.",
        b"cnumpy\ndtype\n(S'V8'\nI00\nI01\ntR.",
        b"cbuiltins\nbytes\n(I1000000000\ntR.",
    ],
)
def test_nothing_else_is_lent_to_a_pickle(command: bytes) -> None:
    with pytest.raises(PickleError, match=r"(is|are) refused"):
        read(command)


def array_state(dtype_state: bytes, data: bytes = b"S'ab'\n", shape: bytes = b"(I2\nt") -> bytes:
    """An array whose dtype u1 has a state that the pickle chooses."""
    dtype = b"cnumpy\ndtype\n(S'u1'\nI00\nI01\ntR" + dtype_state + b"b"
    begin = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR"
    return begin + b"(I1\n" + shape + dtype + b"I00\n" + data + b"tb."


GOOD_STATE = b"(I3\nS'|'\nNNNI-1\nI-1\nI0\nt"


def test_the_state_of_a_dtype_brings_neither_fields_nor_pointers() -> None:
    np.testing.assert_array_equal(read(array_state(GOOD_STATE)).numpy(), [97, 98])
    assert pickle.loads(array_state(GOOD_STATE), encoding="bytes").tolist() == [97, 98]
    for state in (
        GOOD_STATE.replace(b"NNN", b"N(S'x'\ntN"),  # names
        GOOD_STATE.replace(b"NNN", b"NN(I1\nt"),  # fields
        GOOD_STATE.replace(b"NNN", b"(I1\ntNN"),  # a subarray
        GOOD_STATE.replace(b"I0\nt", b"I63\nt"),  # flags: the elements are objects
        GOOD_STATE.replace(b"I-1\nI-1", b"I8\nI-1"),  # another size
        GOOD_STATE.replace(b"S'|'", b"S'X'"),
        b"N",
    ):
        with pytest.raises(PickleError, match="dtype"):
            read(array_state(state))


@pytest.mark.parametrize(
    ("data", "shape", "message"),
    [
        (b"S'abc'\n", b"(I2\nt", r"shape \(2,\) does not have 3 bytes"),
        (b"S'ab'\n", b"(I-2\nt", "not one of whole numbers"),
        (b"S'ab'\n", b"(I4294967296\nI4294967296\nI4294967296\nt", "does not have 2 bytes"),
        (b"]S'ab'\na", b"(I1\nt", "other than numbers and raw bytes"),
        (b"S'ab'\n", b"(I1\nI1\nI1\nI1\nI2\nt", "at most four"),
    ],
)
def test_an_array_has_just_the_bytes_of_its_shape(data: bytes, shape: bytes, message: str) -> None:
    with pytest.raises(PickleError, match=message):
        read(array_state(GOOD_STATE, data, shape))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x80\x02Nr\xff\xff\xff\xff.", "byte 8: memo 4294967295 in a pickle of 3 opcodes"),
        (b"Np4294967296\n.", "memo 4294967296 in a pickle"),
        (b"Np" + b"9" * 10**6, "a line is cut, or longer than 32 bytes"),
        (b"X\xff\xff\xff\xff.", "a string of 4294967295 bytes; the limit is"),
        (b"\x8e" + b"\xff" * 8, "a string of 18446744073709551615 bytes"),
        (b"B\xff\xff\xff\x03.", "the file ends inside a string"),
        (b"\x8b\x00\x00\x00\x7f" + bytes(100), "a number of 2130706432 bytes"),
        (b"(" * 200 + b".", "more than 100 open marks"),
        (b"c_codecs\nencode\n(Vx\nVpunycode\ntR.", "of other than latin1 text is refused"),
        (b"\x85.", "the stack is too short"),
        (b"t.", "there is no mark"),
        (b"h\x01.", "memo 1 was never set"),
        (b"NNa.", "an item for what is no list"),
        (b"\x80\x09.", "pickle protocol 9 is unknown"),
        (b"", "byte 0: the file ends inside the pickle"),
    ],
)
def test_a_pickle_that_asks_for_too_much_ends_at_once(data: bytes, message: str) -> None:
    began = time.perf_counter()
    with pytest.raises(PickleError, match=message):
        read(data)
    assert time.perf_counter() - began < 1


def test_opcodes_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safepickle, "MAX_OPCODES", 1000)
    with pytest.raises(PickleError, match="more than 1000 opcodes"):
        read(b"N" * 2000 + b".")
    assert read(b"N" * 999 + b".") is None


def test_one_large_string_named_many_times_is_held_once(tmp_path: Path) -> None:
    """Of 10 MB that a million calls encode anew, `pickle.loads` would make 10 TB."""
    text = b"X" + struct.pack("<I", 10**7) + bytes(10**7)
    calls = b"h\x00h\x01h\x02\x86R" * 50_000
    data = b"c_codecs\nencode\nq\x00" + text + b"q\x01X\x06\x00\x00\x00latin1q\x02("
    images = read(data + calls + b"l.")
    assert len(images) == 50_000
    assert len({id(image) for image in images}) == 1
    (tmp_path / "many.bin").write_bytes(data + calls + b"l.")
    with pytest.raises(ValueError, match="is not a set of pairs"):
        load_pairs(tmp_path / "many.bin")
