"""Says what is wrong with one image of a data set."""

import io
from dataclasses import dataclass
from enum import IntFlag, auto

import numpy as np
import simplejpeg
from PIL import Image

from facescale.data.images import (
    FORMATS,
    FOUR_COLOURS,
    Encoded,
    Pixels,
    check_size,
    decode_whole,
)
from facescale.data.recordfile import FramingError, TruncatedError


class Flaw(IntFlag):
    """What can be wrong with a record; several at a time."""

    UNREADABLE = auto()
    TRUNCATED = auto()
    MAGIC = auto()
    ZEROED = auto()
    LABEL = auto()
    BROKEN = auto()
    CUT = auto()
    GREY = auto()
    SIZE = auto()
    DEPTH = auto()
    DUPLICATE = auto()
    CONFLICT = auto()


NO_FLAW = Flaw(0)

MEANINGS = {
    Flaw.UNREADABLE: "records that cannot be read",
    Flaw.TRUNCATED: "records that are cut short by the end of the file",
    Flaw.MAGIC: "records without a header where the index says",
    Flaw.ZEROED: "records with zeros in place of data",
    Flaw.LABEL: "labels that are out of range or no whole number",
    Flaw.BROKEN: "images that are damaged or no image",
    Flaw.CUT: "images whose data ends early",
    Flaw.GREY: "images that are uniform grey below, saved again after a cut",
    Flaw.SIZE: "images of another size",
    Flaw.DEPTH: "images that are not RGB of 8 bits",
    Flaw.DUPLICATE: "copies of another image of the same identity",
    Flaw.CONFLICT: "images that occur under several identities",
}
"""What the records of each kind are, for reports."""

NO_IMAGE = (
    Flaw.UNREADABLE | Flaw.TRUNCATED | Flaw.MAGIC | Flaw.ZEROED | Flaw.BROKEN | Flaw.CUT | Flaw.GREY
)
"""The flaws of records without a whole image."""

_ZEROS = bytes(512)  # a sector of a disk
_SCAN = b"\xff\xda"  # compressed data follow
_SMALL = 2**16  # pixels; the data of larger images of one colour may hold many zeros
_GREY, _GREY_ROWS, _GREY_RANGE = 128, 8, 2


@dataclass(frozen=True)
class Examined:
    """What an image file turned out to be.

    Attributes:
        flaws: All that is wrong.
        width: In pixels; 0 where it is not known.
        height: In pixels.
        reasons: What is wrong, in words.
    """

    flaws: Flaw
    width: int = 0
    height: int = 0
    reasons: tuple[str, ...] = ()


def examine(encoded: Encoded, buffer: Pixels) -> Examined:
    """Decode an image and compare it with `buffer`'s size, which may be overwritten.

    Decoding is strict: an image that training would take with a warning is `CUT` or `BROKEN`.
    """
    if not isinstance(encoded, bytes):
        return _examine_pixels(encoded, buffer)
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(encoded)
    except ValueError:
        return _examine_other(encoded, buffer)
    flaws, reasons = _compare(width, height, buffer)
    if colours == "Gray" or colours in FOUR_COLOURS:
        flaws |= Flaw.DEPTH
        channels = "one channel, grey" if colours == "Gray" else f"four channels, {colours}"
        reasons.append(channels)
    try:
        check_size(encoded, width, height)
    except ValueError as error:
        return Examined(flaws | Flaw.BROKEN, width, height, (*reasons, str(error)))
    fits = (height, width) == buffer.shape[:2]
    try:
        if colours in FOUR_COLOURS:
            pixels = decode_whole(encoded)
        else:
            pixels = simplejpeg.decode_jpeg(encoded, buffer=buffer if fits else None)
    except ValueError as error:
        flaw, reason = _of_damaged(encoded, str(error))
        return Examined(flaws | flaw, width, height, (*reasons, reason))
    if width * height <= _SMALL and _ZEROS in encoded and _has_zeros(encoded):
        flaws |= Flaw.ZEROED
        reasons.append("a block of zeros in its data")
    if is_grey_below(pixels):
        flaws |= Flaw.GREY
        reasons.append(f"its lowest {_GREY_ROWS} rows or more are uniform grey")
    return Examined(flaws, width, height, tuple(reasons))


def flaw_of(error: Exception) -> Flaw:
    """The kind of an error that reading a record raised."""
    cause = error.__cause__ or error
    if isinstance(cause, TruncatedError):
        return Flaw.TRUNCATED
    if isinstance(cause, FramingError):
        return Flaw.ZEROED if cause.zeros else Flaw.MAGIC
    return Flaw.UNREADABLE


def is_grey_below(pixels: Pixels) -> bool:
    """Whether the lowest rows are the grey that decoders fill in where the data of a JPEG ends."""
    rows = pixels[-_GREY_ROWS:]
    if abs(int(rows[-1, 0, 0]) - _GREY) > _GREY_RANGE or len(pixels) <= _GREY_ROWS:
        return False  # of nearly all images
    return bool((np.abs(rows.astype(np.int16) - _GREY) <= _GREY_RANGE).all())


def _compare(width: int, height: int, buffer: Pixels) -> tuple[Flaw, list[str]]:
    expected = (buffer.shape[1], buffer.shape[0])
    if (width, height) == expected:
        return NO_FLAW, []
    return Flaw.SIZE, [f"{width} x {height} pixels, not {expected[0]} x {expected[1]}"]


def _of_damaged(encoded: bytes, reason: str) -> tuple[Flaw, str]:
    """What a JPEG suffers from that was not decoded without warning."""
    if _has_zeros(encoded):
        return Flaw.ZEROED, f"a block of zeros in its data ({reason})"
    if "premature end" in reason.lower():
        return Flaw.CUT, f"its data ends early ({reason})"
    return Flaw.BROKEN, reason


def _has_zeros(encoded: bytes) -> bool:
    """Whether a sector of zeros lies in the compressed data."""
    start = encoded.find(_SCAN)
    return encoded.find(_ZEROS, max(0, start)) >= 0


def _examine_other(encoded: bytes, buffer: Pixels) -> Examined:
    """Of a PNG or another format, and of what is no image."""
    if not encoded[: len(_ZEROS)].strip(b"\0"):
        return Examined(Flaw.ZEROED, reasons=(f"{len(encoded)} bytes that begin with zeros",))
    try:
        with Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
            mode, (width, height) = image.mode, image.size
        pixels = decode_whole(encoded)
    except Exception as error:  # a damaged file makes Pillow raise errors of every kind
        reason = f"{error}" or type(error).__name__
        if "cannot identify" in reason:
            reason = f"no image in a known format; it begins with {encoded[:8].hex(' ')}"
        return Examined(Flaw.BROKEN, reasons=(reason,))
    flaws, reasons = _compare(width, height, buffer)
    if mode != "RGB":
        flaws |= Flaw.DEPTH
        reasons.append(f"pixels of mode {mode}, not RGB of 8 bits")
    if is_grey_below(pixels):
        flaws |= Flaw.GREY
        reasons.append(f"its lowest {_GREY_ROWS} rows or more are uniform grey")
    return Examined(flaws, width, height, tuple(reasons))


def _examine_pixels(pixels: Pixels, buffer: Pixels) -> Examined:
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        return Examined(Flaw.DEPTH, reasons=(f"pixels {pixels.dtype} {pixels.shape}",))
    height, width = pixels.shape[:2]
    flaws, reasons = _compare(width, height, buffer)
    return Examined(flaws, width, height, tuple(reasons))
