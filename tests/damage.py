"""Data sets with a flaw of each kind, for tests."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from facescale.data.recordfile import read_index
from facescale.datasets.recordio import write_recordio


def face(seed: int, size: int = 112, **save: object) -> bytes:
    """A JPEG of smooth random colours, of some kilobytes."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (14, 14, 3), np.uint8))
    smooth = np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC)).astype(float)
    pixels = np.clip(smooth + random.normal(0, 12, smooth.shape), 0, 255).astype(np.uint8)
    return saved(Image.fromarray(pixels), "JPEG", quality=90, **save)


def saved(image: Image.Image, kind: str, **save: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **save)
    return file.getvalue()


def cut(jpeg: bytes) -> bytes:
    """Half of the data, and the end marker that hides it from lenient decoders."""
    return jpeg[: len(jpeg) // 2] + b"\xff\xd9"


def saved_again(jpeg: bytes) -> bytes:
    """What a lenient decoder makes of half of the data, saved as a new file."""
    return saved(Image.open(io.BytesIO(cut(jpeg))).convert("RGB"), "JPEG", quality=90)


def with_zeros(jpeg: bytes) -> bytes:
    start = len(jpeg) // 2
    return jpeg[:start] + bytes(600) + jpeg[start + 600 :]


def with_noise(jpeg: bytes) -> bytes:
    noise = np.random.default_rng(0).integers(0, 255, 600, np.uint8).tobytes()  # no marker
    return jpeg[:2000] + noise + jpeg[2600:]


def records(folder: Path, images: list[tuple[bytes, int]], num_classes: int) -> Path:
    write_recordio(folder, images, num_classes)
    return folder


def offsets_of(folder: Path) -> list[int]:
    return [int(offset) for offset in read_index(folder / "train.idx")[1]]


def overwrite(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)
