"""Makes images fit for training: 112 x 112 files that every reader of RecordIO decodes."""

import io
from dataclasses import dataclass
from typing import Literal

import numpy as np
import simplejpeg
from PIL import Image

from facescale.data.images import (
    FOUR_COLOURS,
    IMAGE_SIZE,
    Encoded,
    Pixels,
    decode_into_,
    decode_whole,
    jpeg_orientation,
    to_file,
)

_PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"


@dataclass(frozen=True)
class Prepare:
    """Passes a plain image on as it is, and resizes others only where that was asked for.

    Plain is a JPEG (grey or RGB, upright) or a PNG (8 bits, grey or RGB) of the right size.

    Attributes:
        resize: None refuses other images. "stretch" changes the ratio of the sides, "crop" takes
            the largest central square. Both undo an EXIF orientation.
        encoding: Of images that were resized.
        quality: Of their JPEG, 1 to 100; colours are not subsampled.
    """

    resize: Literal["stretch", "crop"] | None = None
    encoding: Literal["jpeg", "png"] = "jpeg"
    quality: int = 95

    def __post_init__(self) -> None:
        if not 1 <= self.quality <= 100:
            raise ValueError(f"quality must be 1 to 100, got {self.quality}")

    def __call__(self, encoded: Encoded) -> bytes:
        """The file to store; ValueError where an image is unreadable, or must not be changed."""
        if isinstance(encoded, bytes) and _is_plain(encoded):
            return encoded
        if not isinstance(encoded, bytes) and encoded.shape == (IMAGE_SIZE, IMAGE_SIZE, 3):
            return to_file(encoded)
        pixels = decode_whole(encoded) if isinstance(encoded, bytes) else encoded
        if self.resize is None:
            raise ValueError(
                f"a {pixels.shape[1]} x {pixels.shape[0]} image that is no plain JPEG or PNG of "
                f"{IMAGE_SIZE} x {IMAGE_SIZE}; align photographs first, or allow --resize"
            )
        return self._encode(self._fit(pixels))

    def _fit(self, pixels: Pixels) -> Pixels:
        if self.resize == "crop":
            side = min(pixels.shape[:2])
            top, left = ((length - side) // 2 for length in pixels.shape[:2])
            pixels = np.ascontiguousarray(pixels[top : top + side, left : left + side])
        fitted = np.empty((IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
        decode_into_(fitted, pixels)
        return fitted

    def _encode(self, pixels: Pixels) -> bytes:
        if self.encoding == "png":
            return to_file(pixels)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=self.quality, subsampling=0)
        return file.getvalue()


def _is_plain(encoded: bytes) -> bool:
    if encoded.startswith(_PNG):
        width, height = (int.from_bytes(encoded[at : at + 4], "big") for at in (16, 20))
        return width == height == IMAGE_SIZE and encoded[24:26] in (b"\x08\x00", b"\x08\x02")
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(encoded)
    except ValueError:
        return False
    fits = width == height == IMAGE_SIZE and colours not in FOUR_COLOURS
    return fits and jpeg_orientation(encoded) == 1  # other readers do not turn images
