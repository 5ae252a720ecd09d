"""Safetensors files: as the library writes them, without a second copy, and safe to open."""

import os
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from facescale.files import write_whole
from facescale.models import tensorfile
from facescale.models.tensorfile import TYPES, Kind, Pieces, encode, open_tensors

TENSORS = {
    "scalar": torch.tensor(3),
    "channels_last": torch.randn(3, 4, 5, 6).to(memory_format=torch.channels_last),
    "transposed": torch.randn(7, 3).T,
    "empty": torch.empty(0, 4),
    **{str(dtype): torch.arange(5).to(dtype) for dtype in TYPES.values()},
}


def test_the_library_reads_what_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorfile, "_PIECE_BYTES", 64)
    path = tmp_path / "x.safetensors"
    table = torch.arange(14.0).double().view(7, 2)
    pieces = Pieces(Kind((7, 2), torch.float64), iter(table.split(3)))
    write_whole(path, encode({**TENSORS, "pieces": pieces}, {"key": "value"}))
    found = load_file(path)
    assert torch.equal(found.pop("pieces"), table)
    assert found.keys() == TENSORS.keys()
    for name, value in TENSORS.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value), name


def test_what_the_library_writes_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({name: value.contiguous() for name, value in TENSORS.items()}, path, {"key": "value"})
    with open_tensors(path) as file:
        assert file.metadata == {"key": "value"}
        assert file.kinds == {name: tensorfile.kind_of(value) for name, value in TENSORS.items()}
        for name, value in TENSORS.items():
            assert torch.equal(file.tensor(name), value), name
        assert torch.equal(file.rows("transposed", 1, 3), TENSORS["transposed"][1:3])


def test_a_file_has_the_mode_that_umask_says(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_whole(tmp_path / "x.safetensors", encode(TENSORS))
    finally:
        os.umask(before)
    assert (tmp_path / "x.safetensors").stat().st_mode & 0o777 == 0o640


def with_header(header: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header + data


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not a safetensors file"),
        (struct.pack("<Q", 1 << 60) + b"{}", "is not a safetensors file"),
        (with_header(b"[]"), "is not a safetensors file"),
        (with_header(b"[" * 3000), "is not a safetensors file"),
        (with_header(b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}'), "is not a safet"),
        (
            with_header(b'{"a":{"dtype":"F8_E8M0","shape":[1],"data_offsets":[0,1]}}', b"x"),
            "a has elements of type F8_E8M0",
        ),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{path}.*{message}"), open_tensors(path):
        pass


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="is not a regular file"), open_tensors(tmp_path / "pipe"):
        pass


def test_a_file_of_too_many_tensors_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorfile, "MAX_TENSORS", 10)
    path = tmp_path / "x.safetensors"
    write_whole(path, encode(TENSORS))
    with pytest.raises(ValueError, match="has 14 tensors; 10 are the most"), open_tensors(path):
        pass


def peak_kib() -> int:
    """The most memory that this process has held since its peak was forgotten."""
    status = Path("/proc/self/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1])


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux tells the peak")
def test_writing_a_large_tensor_takes_no_second_copy(tmp_path: Path) -> None:
    table = torch.ones(60_000, 2, 256)  # 117 MiB
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak
    before = peak_kib()
    write_whole(tmp_path / "x.safetensors", encode({"centres": table}))
    assert peak_kib() - before < 20_000
    pieces = Pieces(tensorfile.kind_of(table), (torch.ones(1000, 2, 256) for _ in range(60)))
    write_whole(tmp_path / "y.safetensors", encode({"centres": pieces}))
    assert peak_kib() - before < 20_000
    assert (tmp_path / "x.safetensors").read_bytes() == (tmp_path / "y.safetensors").read_bytes()
