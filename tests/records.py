"""RecordIO sets for tests."""

import io
import struct
from pathlib import Path

import numpy as np
from PIL import Image

from facescale.data.recordfile import write_record


def file_of(text: str) -> bytes:
    """Stands for an encoded image: reading and writing records does not look into it."""
    return b"image " + text.encode()


def im2rec_layout(folder: Path, labels: list[float], keys: list[int] | None = None) -> Path:
    lines = []
    with (folder / "train.rec").open("wb") as file:
        for key, label in enumerate(labels):
            lines.append(f"{keys[key] if keys else key}\t{file.tell()}\n")
            write_record(file, struct.pack("<IfQQ", 0, label, key, 0) + file_of(str(key)))
    (folder / "train.idx").write_text("".join(lines))
    return folder


def recordio_set(folder: Path, labels: list[int], random: np.random.Generator) -> Path:
    """A training set in InsightFace's layout: a JPEG of 112 x 112 coloured blocks per label."""
    lines = []
    with (folder / "train.rec").open("wb") as file:
        for key, label in enumerate(labels, start=1):
            lines.append(f"{key}\t{file.tell()}\n")
            write_record(file, struct.pack("<IfQQ", 0, label, key, 0) + jpeg(random))
    (folder / "train.idx").write_text("".join(lines))
    (folder / "property").write_text(f"{len(set(labels))},112,112\n")
    return folder


def ycck(cmyk: bytes) -> bytes:
    """A CMYK JPEG of Pillow as the other kind of four colours, by its Adobe segment."""
    transform = cmyk.index(b"Adobe") + 11
    return cmyk[:transform] + b"\2" + cmyk[transform + 1 :]


def jpeg(random: np.random.Generator) -> bytes:
    """An encoded image of 112 x 112 pixels, in blocks of random colours."""
    pixels = np.kron(random.integers(0, 256, (14, 14, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()
