"""RecordIO as MXNet and arcface_torch read it, in a few lines that share none with facescale."""

import struct
from pathlib import Path

MAGIC = b"\x0a\x23\xd7\xce"


def record_at(data: bytes, offset: int) -> bytes:
    """dmlc-core: magic, kind and length, data, padding; parts are joined by the magic."""
    parts = []
    while True:
        assert data[offset : offset + 4] == MAGIC
        (word,) = struct.unpack("<I", data[offset + 4 : offset + 8])
        kind, length = word >> 29, word & 0x1FFFFFFF
        parts.append(data[offset + 8 : offset + 8 + length])
        offset += 8 + (length + 3) // 4 * 4
        if kind in (0, 3):
            return MAGIC.join(parts)


def unpack(record: bytes) -> tuple[list[float], int, bytes]:
    """mxnet.recordio.unpack: labels, id, image."""
    flag, label, number, _ = struct.unpack("<IfQQ", record[:24])
    if flag == 0:
        return [label], number, record[24:]
    stop = 24 + 4 * flag
    return list(struct.unpack(f"<{flag}f", record[24:stop])), number, record[stop:]


def read_set(folder: Path) -> tuple[list[tuple[int, bytes]], list[tuple[int, int]]]:
    """(label, image) of keys 1.. as arcface_torch's MXFaceDataset, and each identity's range."""
    data = (folder / "train.rec").read_bytes()
    lines = [line.split("\t") for line in (folder / "train.idx").read_text().splitlines()]
    index = {int(key): int(offset) for key, offset in lines}
    header, _, _ = unpack(record_at(data, index[0]))
    images = [unpack(record_at(data, index[key])) for key in range(1, int(header[0]))]
    ranges = [
        unpack(record_at(data, index[key]))[0] for key in range(int(header[0]), int(header[1]))
    ]
    assert len(index) == int(header[1])
    return [(int(labels[0]), image) for labels, _, image in images], [
        (int(begin), int(end)) for begin, end in ranges
    ]
