"""An image of a data set: encoded bytes or pixels, and how it becomes 112 x 112 RGB."""

import io
import struct
from typing import NamedTuple

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

IMAGE_SIZE = 112
"""Height and width in pixels of what every backbone takes."""

Pixels = NDArray[np.uint8]
Encoded = bytes | Pixels
"""A whole image file, or RGB pixels (height, width, 3)."""


class Sample(NamedTuple):
    """An image and the class of the person in it."""

    encoded: Encoded
    label: int


def decode(encoded: Encoded, image_size: int = IMAGE_SIZE) -> Pixels:
    """Decode to RGB (image_size, image_size, 3); another size is stretched, grey is repeated.

    Raises:
        ValueError: Not an image, or a damaged one.
    """
    pixels = np.empty((image_size, image_size, 3), np.uint8)
    decode_into_(pixels, encoded)
    return pixels


def decode_into_(pixels: Pixels, encoded: Encoded) -> None:
    """`decode` into `pixels`, contiguous (height, width, 3); a JPEG of that size needs no copy."""
    if isinstance(encoded, bytes):
        decoded = _decode_file(encoded, pixels)
    else:
        decoded = encoded
        if decoded.dtype != np.uint8 or decoded.ndim != 3 or decoded.shape[2] != 3:
            raise ValueError(
                f"pixels must be uint8 (height, width, 3), got {decoded.dtype} {decoded.shape}"
            )
    if decoded.shape != pixels.shape:
        size = (pixels.shape[1], pixels.shape[0])
        decoded = np.asarray(Image.fromarray(decoded).resize(size, Image.Resampling.BILINEAR))
    if decoded.base is not pixels:
        pixels[:] = decoded


def _decode_file(encoded: bytes, pixels: Pixels) -> Pixels:
    """Decode in the file's own size: a JPEG that fits into `pixels`, all else into a new array."""
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(encoded)
        if colours != "CMYK":  # comes in two conventions, which Pillow tells apart
            buffer = pixels if (height, width) == pixels.shape[:2] else None
            decoded: Pixels = simplejpeg.decode_jpeg(encoded, buffer=buffer)
            return decoded
    except ValueError:
        pass  # not a JPEG, or one with flaws that Pillow forgives, as the other systems do
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            return np.asarray(image.convert("RGB"))
    except UnidentifiedImageError as error:
        raise ValueError("not a readable image: its format is unknown") from error
    except _BROKEN as error:
        raise ValueError(f"not a readable image: {error}") from error


# What Pillow raises for damaged files: SyntaxError for PNG, struct.error for cut headers, ...
_BROKEN = (OSError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError)


def has_image_header(encoded: bytes) -> bool:
    """Whether `encoded` begins like an image; a hundred times faster than to decode it."""
    try:
        simplejpeg.decode_jpeg_header(encoded)
    except ValueError:
        try:
            Image.open(io.BytesIO(encoded)).close()
        except _BROKEN:
            return False
    return True


def to_file(encoded: Encoded) -> bytes:
    """The bytes of an image file as they are; pixels as PNG, which loses nothing."""
    if isinstance(encoded, bytes):
        return encoded
    file = io.BytesIO()
    Image.fromarray(encoded).save(file, "PNG")
    return file.getvalue()
