"""RecordIO sets for tests."""

import struct
from pathlib import Path

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
