"""Image files become RGB pixels of 8 bits, upright, or one error; a header cannot ask for more."""

import io
import struct
import subprocess
import warnings
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from confined import confined
from facescale.data import images
from facescale.data.images import decode, decode_into_, has_image_header, to_file
from facescale.data.recordio import RecordIO
from records import ycck
from shared_data import shared_data

NOISE = np.random.default_rng(0).integers(0, 256, (112, 112, 3), np.uint8)
SMOOTH = np.asarray(Image.fromarray(NOISE).resize((4, 4)).resize((112, 112)))


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def pillow(encoded: bytes) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))


FORMATS: dict[str, tuple[str, dict[str, object]]] = {
    "JPEG 444": ("JPEG", {"subsampling": 0}),
    "JPEG 422": ("JPEG", {"subsampling": 1}),
    "JPEG 420": ("JPEG", {"subsampling": 2}),
    "JPEG progressive": ("JPEG", {"progressive": True}),
    "PNG": ("PNG", {}),
    "BMP": ("BMP", {}),
    "WEBP": ("WEBP", {"lossless": True}),
}


MODES = ("RGB", "L", "CMYK")


@pytest.mark.parametrize(
    ("name", "mode"),
    [(n, m) for n in FORMATS for m in MODES if m != "CMYK" or n.startswith("JPEG")],
)
def test_every_format_decodes_to_the_bits_of_pillow(name: str, mode: str) -> None:
    kind, options = FORMATS[name]
    encoded = encode(Image.fromarray(SMOOTH).convert(mode), kind, **options)
    np.testing.assert_array_equal(decode(encoded), pillow(encoded))


def test_both_kinds_of_four_colours_decode_to_the_bits_of_pillow() -> None:
    encoded = ycck(encode(Image.fromarray(SMOOTH).convert("CMYK"), "JPEG"))
    np.testing.assert_array_equal(decode(encoded), pillow(encoded))


def test_real_faces_decode_to_the_bits_of_pillow() -> None:
    faces = RecordIO(shared_data("cfp324"))
    for index in range(0, len(faces), 50):
        encoded = faces.read(index).encoded
        assert isinstance(encoded, bytes)
        np.testing.assert_array_equal(decode(encoded), pillow(encoded))


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_another_size_is_resized_as_pillow_does(kind: str) -> None:
    encoded = encode(Image.fromarray(SMOOTH).crop((0, 0, 90, 70)), kind)
    resized = Image.fromarray(pillow(encoded)).resize((112, 112), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(decode(encoded), np.asarray(resized))
    assert decode(encoded, 64).shape == (64, 64, 3)


def test_a_jpeg_is_decoded_into_its_row_of_the_batch_and_nowhere_else() -> None:
    encoded = encode(Image.fromarray(SMOOTH), "JPEG")
    batch = np.zeros((3, 112, 112, 3), np.uint8)
    decode_into_(batch[1], encoded)
    np.testing.assert_array_equal(batch[1], pillow(encoded))
    assert not batch[[0, 2]].any()


def test_pixels_pass_unchanged_and_others_are_refused() -> None:
    np.testing.assert_array_equal(decode(NOISE), NOISE)
    np.testing.assert_array_equal(decode(to_file(NOISE)), NOISE)
    wrong: Any
    for wrong in (NOISE[:, :, 0], NOISE.astype(np.float32), NOISE[:, :, :1]):
        with pytest.raises(ValueError, match=r"pixels must be uint8 \(height, width, 3\), got"):
            decode(wrong)


def test_a_jpeg_with_a_flaw_that_can_be_mended_is_read_as_pillow_reads_it() -> None:
    encoded = bytearray(encode(Image.fromarray(NOISE), "JPEG"))
    encoded[3000:3004] = b"\xff\xff\x00\x13"
    np.testing.assert_array_equal(decode(bytes(encoded)), pillow(bytes(encoded)))


@settings(deadline=None, max_examples=200)
@given(
    kind=st.sampled_from(["JPEG", "PNG", "BMP", "WEBP", "TIFF", "PPM"]),
    cut=st.integers(0, 10_000),
    place=st.integers(0, 10_000),
    byte=st.integers(0, 255),
)
def test_a_damaged_image_is_decoded_or_refused_and_never_worse(
    kind: str, cut: int, place: int, byte: int
) -> None:
    encoded = bytearray(encode(Image.fromarray(SMOOTH), kind))
    encoded[place % len(encoded)] = byte
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of what it then refuses or mends
        try:
            assert decode(bytes(encoded[: len(encoded) - cut])).shape == (112, 112, 3)
        except ValueError as error:
            assert str(error).startswith("not a readable image")  # noqa: PT017


@pytest.mark.parametrize("encoded", [b"", b"hello", encode(Image.fromarray(NOISE), "PNG")[:20]])
def test_what_is_no_image_is_refused(encoded: bytes) -> None:
    assert not has_image_header(encoded)
    with pytest.raises(ValueError, match="not a readable image"):
        decode(encoded)


def test_a_header_tells_an_image() -> None:
    for kind in ("JPEG", "PNG"):
        assert has_image_header(encode(Image.fromarray(NOISE), kind))


def sized(kind: str, width: int, height: int) -> bytes:
    """A file of a few hundred bytes whose header states a size."""
    encoded = bytearray(
        encode(
            Image.fromarray(SMOOTH[:16, :16]),
            kind.split()[0],
            **({"progressive": True} if kind == "JPEG progressive" else {}),
        )
    )
    if kind == "PNG":
        encoded[16:24] = struct.pack(">2I", width, height)
        encoded[29:33] = struct.pack(">I", zlib.crc32(encoded[12:29]))
    elif kind == "BMP":
        encoded[18:26] = struct.pack("<2i", width, height)
    else:
        frame = encoded.index(b"\xff\xc2" if "progressive" in kind else b"\xff\xc0")
        encoded[frame + 5 : frame + 9] = struct.pack(">2H", height, width)
    return bytes(encoded)


@pytest.mark.parametrize("kind", ["JPEG", "JPEG progressive", "PNG", "BMP"])
def test_a_header_that_states_too_many_pixels_is_refused_before_decoding(
    kind: str,
) -> None:
    assert decode(sized(kind, 16, 16)).shape == (112, 112, 3)
    answer = confined(decode, sized(kind, 30_000, 30_000))
    assert answer.startswith("_UnreadableImage: not a readable image: ")
    assert f"more than {images.MAX_PIXELS} pixels" in answer


def test_the_largest_image_is_one_of_max_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_PIXELS", 112 * 112)
    for kind in ("JPEG", "PNG"):
        assert decode(encode(Image.fromarray(NOISE), kind)).shape == (112, 112, 3)
        with pytest.raises(ValueError, match="image: 113 x 112 is more than 12544 pixels"):
            decode(encode(Image.fromarray(NOISE).resize((113, 112)), kind))


def test_a_jpeg_of_a_thousand_scans_is_refused() -> None:
    large = encode(Image.fromarray(NOISE).resize((2000, 2000)), "JPEG", progressive=True)
    assert decode(large).shape == (112, 112, 3)
    scan = large[large.rindex(b"\xff\xda") : -2]
    with pytest.raises(ValueError, match="too many scans for 2000 x 2000 pixels"):
        decode(large[:-2] + scan[:20] * 1000 + large[-2:])


def test_only_named_formats_are_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    """PostScript would start Ghostscript."""
    eps = encode(Image.fromarray(SMOOTH), "EPS")
    assert Image.open(io.BytesIO(eps)).format == "EPS"
    monkeypatch.setattr(subprocess, "Popen", None)
    for encoded in (
        eps,
        encode(Image.fromarray(SMOOTH), "GIF"),
        encode(Image.fromarray(SMOOTH), "ICO"),
    ):
        assert not has_image_header(encoded)
        with pytest.raises(ValueError, match="image: its format is none of JPEG, PNG, BMP, WEBP"):
            decode(encoded)


RAMP = np.linspace(0, 65_535, 112 * 112).astype(np.uint16).reshape(112, 112)


@pytest.mark.parametrize(("kind", "tolerance"), [("PNG", 0.5), ("TIFF", 0.5), ("PPM", 0.5)])
def test_sixteen_bits_are_scaled_to_eight(kind: str, tolerance: float) -> None:
    decoded = decode(encode(Image.fromarray(RAMP), kind))
    assert decoded.shape == (112, 112, 3)
    assert np.abs(decoded - (RAMP / 257)[:, :, None]).max() <= tolerance + 1e-9
    assert (decoded.min(), decoded.max()) == (0, 255)


def test_pixels_of_32_bits_are_refused_because_nobody_states_their_range() -> None:
    for array in (RAMP.astype(np.float32), RAMP.astype(np.int32)):
        with pytest.raises(ValueError, match="the range of its 32-bit pixels is unknown; save it"):
            decode(encode(Image.fromarray(array), "TIFF"))


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "JPEG CMYK"])
def test_an_image_stands_upright_whatever_way_the_camera_was_held(
    kind: str, orientation: int
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    source = Image.fromarray(SMOOTH).crop((0, 0, 112, 80))
    source = source.convert("CMYK") if kind == "JPEG CMYK" else source
    encoded = encode(source, kind.split()[0], exif=exif)
    truth = ImageOps.exif_transpose(Image.open(io.BytesIO(encoded))).convert("RGB")
    assert truth.size == ((80, 112) if orientation in (5, 6, 7, 8) else (112, 80))
    truth = truth.resize((112, 112), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(decode(encoded), np.asarray(truth))


def test_an_upright_photograph_of_the_right_size_is_turned_too() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    encoded = encode(Image.fromarray(SMOOTH), "JPEG", exif=exif)
    upright = np.rot90(pillow(encoded), -1)
    np.testing.assert_array_equal(decode(encoded), upright)
    broken = encoded.replace(b"Exif\0\0MM\0\x2a", b"Exif\0\0XX\0\x2a")  # no TIFF header
    assert broken != encoded
    np.testing.assert_array_equal(decode(broken), pillow(encoded))
