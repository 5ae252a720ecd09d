"""`run.json`: what is written comes back; what is ill-typed is one line."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from facescale.checkpoint import record
from facescale.checkpoint.record import Record, Rows, Run
from facescale.models.tensorfile import Kind

RUN = Run(
    step=7,
    position=56,
    skipped=1,
    seed=2,
    scaler={"scale": 65536.0, "_growth_tracker": 3},
    people="abc",
    backbone={"name": "y1", "dropout": None},
    optimizer="SGD",
)
RECORD = Record(
    RUN,
    ranks=3,
    finite=True,
    centres=Kind((10, 2, 8), torch.bfloat16),
    rows=(Rows(0, 0, 4), Rows(2, 4, 8), Rows(1, 8, 10)),
)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(RECORD.to_json())
    assert record.read(tmp_path) == RECORD
    assert RECORD.rows_of(range(3, 5)) == [Rows(0, 0, 4), Rows(2, 4, 8)]
    assert RECORD.rows_of(range(4, 4)) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "format 2, this version reads 3"),
        ({"format": None}, "format None"),
        ({"step": -1}, "step is -1"),
        ({"step": True}, "step is True"),
        ({"step": 1.0}, "step is 1.0"),
        ({"position": 1 << 62}, "position is 4611686018427387904"),
        ({"seed": "0"}, "seed is 0"),
        ({"scaler": {"scale": float("inf")}}, "scaler is"),
        ({"scaler": {"scale": 10**400}}, "scaler is"),
        ({"scaler": []}, "scaler is"),
        ({"people": 3}, "people is 3"),
        ({"backbone": {"name": ["y1"]}}, "backbone is"),
        ({"optimizer": "x" * 1000}, "optimizer is x{100}$"),
        ({"ranks": 0}, "ranks is 0"),
        ({"finite": 1}, "finite is 1"),
        ({"centres": None}, "centres is None"),
        ({"shape": [10, 2]}, "shape is"),
        ({"shape": [10, 2, -8]}, "shape is"),
        ({"dtype": "F8"}, "unknown type F8"),
        ({"dtype": ["F32"]}, "dtype is"),
        ({"rows": [[0, 0]]}, "list of files is not readable"),
        ({"rows": [[0, 0, 4], [2, 4, 8], [3, 8, 10]]}, "rank 3 cannot hold classes 8 to 10"),
        ({"rows": [[0, 0, 4], [2, 5, 8], [1, 8, 10]]}, "do not cover all classes once each"),
        ({"rows": [[0, 0, 4], [2, 4, 8], [1, 8, 9]]}, "do not cover all classes once each"),
        ({"rows": [[0, 0, 4], [2, 4, 8], [0, 8, 10]]}, "a file is listed twice"),
    ],
)
def test_an_ill_typed_value_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    values = json.loads(RECORD.to_json())
    for name, value in changes.items():
        (values["centres"] if name in values["centres"] else values)[name] = value
    path = tmp_path / "run.json"
    path.write_text(json.dumps(values))
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}: .*{message}"):
        record.read(tmp_path)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b"\xff\xfe{}", b"[" * 100_000, b'{"step":' + b"9" * 5000 + b"}"],
)
def test_what_is_no_json_object_is_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"run\.json is not readable: ") as caught:
        record.read(tmp_path)
    assert len(str(caught.value)) < 400


def test_a_huge_file_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "MAX_BYTES", 100)
    (tmp_path / "run.json").write_text(RECORD.to_json())
    with pytest.raises(ValueError, match="larger than 100 bytes"):
        record.read(tmp_path)
