"""The members of tar archives: ustar, GNU and pax headers, with bounds. Nothing is unpacked."""

import logging
import os
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from facescale.data.recordfile import TruncatedError

BLOCK = 512
_MAX_EXTRA = 2**16  # bytes of a long name or of pax records
_MAX_EXTRAS = 8  # such headers before one member
_PADDING = 2**24  # bytes behind the end mark that are looked at; tar writes up to 1 MiB
_LINKS = (b"1", b"2")  # hard and symbolic
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}

_log = logging.getLogger(__name__)


class Member(NamedTuple):
    """A regular file in an archive: its name, its first byte, its length."""

    name: str
    offset: int
    size: int


def members(file: BinaryIO, where: str) -> Iterator[Member]:
    """The regular files of an archive, in their order. `where` is what errors call it.

    Links are not followed, and counted in a warning.

    Raises:
        TruncatedError: The archive ends inside a member.
        ValueError: It is no tar archive, a compressed or a damaged one, or several in one file.
    """
    end, offset, extras, links = os.fstat(file.fileno()).st_size, 0, 0, 0
    name: str | None = None
    size: int | None = None
    while offset + BLOCK <= end:
        file.seek(offset)
        header = file.read(BLOCK)
        if header == bytes(BLOCK):
            _check_padding(file, where, offset)
            _tell_links(where, links)
            return
        _check(header, where, offset)
        kind, length = header[156:157], _number(header[124:136], where, offset)
        if kind in (b"0", b"\0") and size is not None:
            length = size
        begin = offset + BLOCK
        if length > end - begin:
            raise TruncatedError(
                f"{where}: the archive ends inside the member at byte {offset}, after {end} bytes; "
                "copy it again"
            )
        offset = begin + -(-length // BLOCK) * BLOCK
        if kind in (b"x", b"L"):
            extras += 1
            if length > _MAX_EXTRA or extras > _MAX_EXTRAS:
                raise ValueError(f"{where}: the extended header at byte {begin} is too large")
            content = file.read(length)
            if kind == b"L":
                name = os.fsdecode(content.rstrip(b"\0"))
            else:
                name, size = _pax(content, where, begin, name, size)
            continue
        if kind in (b"0", b"\0"):
            yield Member(_name(header) if name is None else name, begin, length)
        links += kind in _LINKS
        name, size, extras = None, None, 0
    if offset != end or end == 0:
        raise TruncatedError(f"{where}: {end} bytes are no whole tar archive; copy it again")
    _tell_links(where, links)


def _check_padding(file: BinaryIO, where: str, offset: int) -> None:
    """Zeros alone may follow the block of zeros at `offset`; else it was a header that is lost."""
    if file.read(_PADDING).strip(b"\0"):
        raise ValueError(
            f"{where}: zeros in place of a header at byte {offset}, and data behind them; copy the "
            "archive again, or unpack it if several were joined to one"
        )


def _tell_links(where: str, count: int) -> None:
    if count:
        remedy = "pack the files themselves with tar --dereference --hard-dereference"
        _log.warning("%s: %d links are passed over; %s", where, count, remedy)


def states_size(header: bytes, size: int) -> bool:
    """Whether a block is the header of a member of `size` bytes, as far as its length tells."""
    try:
        return _number(header[124:136], "", 0) == size
    except ValueError:
        return False


def _check(header: bytes, where: str, offset: int) -> None:
    """The checksum of a header: the sum of its bytes, with spaces in place of itself."""
    stated = header[148:156].strip(b" \0")
    total = sum(header) - sum(header[148:156]) + 8 * 32
    if stated.isdigit() and _octal(stated) == total:
        return
    for magic, kind in _COMPRESSED.items():
        if offset == 0 and header.startswith(magic):
            raise ValueError(
                f"{where} is compressed ({kind}), so single images cannot be read; unpack it to a "
                ".tar (images do not get smaller)"
            )
    raise ValueError(f"{where}: no tar header at byte {offset}; copy the archive again")


def _octal(text: bytes) -> int:
    return int(text, 8) if not set(text) - set(b"01234567") else -1


def _number(field: bytes, where: str, offset: int) -> int:
    """A length: octal digits, or big-endian behind a bit."""
    if field[0] == 0x80:
        value = int.from_bytes(field[1:], "big")
    else:
        text = field.strip(b" \0")
        value = _octal(text) if text else 0
    if not 0 <= value < 2**62:
        raise ValueError(f"{where}: the header at byte {offset} states no length")
    return value


def _name(header: bytes) -> str:
    name, prefix = (header[at : at + size].split(b"\0")[0] for at, size in ((0, 100), (345, 155)))
    is_posix = header[257:263] == b"ustar\0"
    return os.fsdecode(prefix + b"/" + name if prefix and is_posix else name)


def _pax(
    content: bytes, where: str, offset: int, name: str | None, size: int | None
) -> tuple[str | None, int | None]:
    """Path and size among pax records: "length key=value" and a line break each."""
    place = 0
    while place < len(content) and content[place] != 0:
        digits, space, _ = content[place : place + 8].partition(b" ")
        length = int(digits) if space and digits.isdigit() else 0
        record = content[place : place + length]
        key, equals, value = record[len(digits) + 1 : -1].partition(b"=")
        if length < 5 or len(record) != length or not record.endswith(b"\n") or not equals:
            raise ValueError(f"{where}: the pax header at byte {offset} is damaged")
        if key == b"path":
            name = os.fsdecode(value)
        elif key == b"size":
            if not value.isdigit() or len(value) > 18:
                raise ValueError(f"{where}: the pax header at byte {offset} states no length")
            size = int(value)
        elif key.startswith(b"GNU.sparse"):
            raise ValueError(f"{where}: the sparse file at byte {offset} cannot be read")
        place += length
    return name, size
