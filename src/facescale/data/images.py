"""Decodes the images of data sets to RGB pixels of one size."""

import io
import logging
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

try:
    import simplejpeg
except ImportError:  # Pillow decodes too, at half of the speed
    simplejpeg = None

_log = logging.getLogger(__name__)

IMAGE_SIZE = 112
"""Height and width in pixels of the input of every backbone."""

FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "PPM")
"""What is read; PPM stands for PGM and PBM too."""

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".pgm", ".ppm", ".tif", ".tiff")
"""Of the names of image files, in lower case."""

FOUR_COLOURS = ("CMYK", "YCCK")
"""Of the spaces of a JPEG those of print; Photoshop writes the second."""

MAX_PIXELS = 2**25
"""Of one image, more than an 8K frame has; decoding takes up to 450 MB."""

_MAX_PIXEL_SCANS = 2**30
_JPEG_SCAN = b"\xff\xda"  # cannot occur in the compressed data
_JPEG_TABLE = b"\xff\xdb"  # EXIF comes before the first one
_EXIF, _MAX_HEADERS = b"Exif\0\0", 2**16
_BITS_PER_SAMPLE = 258  # a tag of TIFF

Pixels = NDArray[np.uint8]
Encoded = bytes | Pixels
"""A whole image file, or RGB pixels (height, width, 3)."""


class Sample(NamedTuple):
    """An image and the class of the person in it."""

    encoded: Encoded
    label: int


def decode(encoded: Encoded, image_size: int = IMAGE_SIZE) -> Pixels:
    """Decode to RGB (image_size, image_size, 3); another size is stretched, grey is repeated.

    An image of 16 bits is scaled to 8, and an EXIF orientation is undone.

    Raises:
        ValueError: Not an image in one of `FORMATS`, a damaged one, one of more than `MAX_PIXELS`
            (before it is decoded), or one of 32-bit pixels, whose range nobody states.
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
    if simplejpeg is None:
        _say_once()
        return _decode_by_pillow(encoded)
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(encoded)
    except ValueError:
        return _decode_by_pillow(encoded)
    check_size(encoded, width, height)
    if colours in FOUR_COLOURS:  # come in two conventions, which Pillow tells apart
        return _decode_by_pillow(encoded)
    orientation = jpeg_orientation(encoded)
    fits = (height, width) == pixels.shape[:2] and orientation == 1
    try:
        decoded: Pixels = simplejpeg.decode_jpeg(encoded, buffer=pixels if fits else None)
    except ValueError:  # with flaws that Pillow forgives, as the other systems do
        return _decode_by_pillow(encoded)
    return decoded if orientation == 1 else _upright(decoded, orientation)


@cache
def _say_once() -> None:
    _log.warning("Pillow decodes the images; simplejpeg is faster: pip install simplejpeg")


def _decode_by_pillow(encoded: bytes) -> Pixels:
    try:
        with _open(encoded) as image:
            check_size(encoded, *image.size)
            pixels = _to_rgb(image)
            return _upright(pixels, image.getexif().get(ExifTags.Base.Orientation, 1))
    except _UnreadableImage:
        raise
    except Exception as error:  # a damaged file makes Pillow raise errors of every kind
        raise _UnreadableImage(f"{error}" or type(error).__name__) from error


class _UnreadableImage(ValueError):
    def __init__(self, reason: str) -> None:
        super().__init__(f"not a readable image: {reason}")


def _open(encoded: bytes) -> Image.Image:
    """Read the header. Pillow knows fifty formats more, one of which starts Ghostscript."""
    try:
        return Image.open(io.BytesIO(encoded), formats=FORMATS)
    except UnidentifiedImageError as error:
        raise _UnreadableImage(f"its format is none of {', '.join(FORMATS)}") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _UnreadableImage(f"more than {MAX_PIXELS} pixels") from error


def check_size(encoded: bytes, width: int, height: int) -> None:
    """Raise ValueError where an image file of this size would take too much to decode."""
    if width * height > MAX_PIXELS:
        raise _UnreadableImage(f"{width} x {height} is more than {MAX_PIXELS} pixels")
    # A few bytes of a progressive JPEG can be a pass over all pixels.
    if width * height > 2**16 and encoded.count(_JPEG_SCAN) * width * height > _MAX_PIXEL_SCANS:
        raise _UnreadableImage(f"too many scans for {width} x {height} pixels")


def _to_rgb(image: Image.Image) -> Pixels:
    """All kinds of pixels as RGB of 8 bits; Pillow itself would clip those of 16 bits."""
    is_16_bit = image.mode.startswith("I;16") or image.format in ("PNG", "PPM")
    if image.mode == "F" or (image.mode == "I" and not is_16_bit):
        raise _UnreadableImage("the range of its 32-bit pixels is unknown; save it with 8 bits")
    if not image.mode.startswith("I"):
        return np.asarray(image.convert("RGB"))
    bits = image.tag_v2.get(_BITS_PER_SAMPLE, (16,))[0] if hasattr(image, "tag_v2") else 16
    largest = 2**bits - 1
    grey = ((np.asarray(image).astype(np.uint32) * 255 + largest // 2) // largest).astype(np.uint8)
    return np.repeat(grey[:, :, None], 3, axis=2)


def jpeg_orientation(jpeg: bytes) -> int:
    """How a camera was held, 1 to 8 as in EXIF; a hundred times faster than to ask Pillow."""
    start = jpeg.find(_EXIF, 0, jpeg.find(_JPEG_TABLE, 0, _MAX_HEADERS))
    if start < 0:
        return 1
    exif = Image.Exif()
    try:
        exif.load(jpeg[start : start + _MAX_HEADERS])
        orientation = exif.get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged EXIF, on which the image itself does not depend
        return 1
    return orientation if isinstance(orientation, int) else 1


def _upright(pixels: Pixels, orientation: object) -> Pixels:
    """Undo an EXIF orientation; one that EXIF does not know changes nothing."""
    turns = {3: 2, 4: 2, 5: 3, 6: 3, 7: 1, 8: 1}  # quarters, against the clock
    if orientation in turns:
        pixels = np.rot90(pixels, turns[int(str(orientation))])
    if orientation in (2, 4, 5, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def header_size(encoded: bytes) -> tuple[int, int]:
    """Width and height that an image's header states; a hundred times faster than to decode it.

    An EXIF orientation is not looked at.

    Raises:
        ValueError: No image begins here.
    """
    if simplejpeg is not None:
        try:
            height, width, _, _ = simplejpeg.decode_jpeg_header(encoded)
        except ValueError:
            pass
        else:
            return width, height
    try:
        with _open(encoded) as image:
            return image.size
    except _UnreadableImage:
        raise
    except Exception as error:  # as above
        raise _UnreadableImage(f"{error}" or type(error).__name__) from error


def has_image_header(encoded: bytes) -> bool:
    """Whether `encoded` begins like an image."""
    try:
        header_size(encoded)
    except ValueError:
        return False
    return True


def to_file(encoded: Encoded) -> bytes:
    """An image file: bytes as they are, pixels encoded as PNG, which is lossless."""
    if isinstance(encoded, bytes):
        return encoded
    file = io.BytesIO()
    Image.fromarray(encoded).save(file, "PNG")
    return file.getvalue()


def decode_whole(encoded: bytes) -> Pixels:
    """Decode to RGB (height, width, 3) in the image's own size; errors as in `decode`."""
    return _decode_file(encoded, np.empty((0, 0, 3), np.uint8))
