"""Files of a checkpoint changed at random: equal values, or one line; nothing run, no memory taken.

The fast test tries some hundred changes, the slow one 20,000: `pytest -m slow tests/checkpoint`.
"""

import hashlib
import json
import random
import resource
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from test_checkpoint_record import RUN
from torch import Tensor, nn

from facescale import backbones
from facescale.checkpoint import record, tensors
from facescale.checkpoint.folder import Part, damage, write_parts
from facescale.config import OptimConfig
from facescale.distributed import Group
from facescale.models.tensorfile import kind_of
from facescale.models.weights import build_checked
from facescale.training.optim import make_optimizer

NASTY: list[Any] = [
    *(None, True, [], {}, "", -1, 0, 1, 1 << 31, 1 << 62, 1 << 70, 10**400, 0.5, 1e308),
    *(float("nan"), float("inf"), "x" * 100_000, "../run.json", "F32", "BF16", "U8", [[[]]]),
    *([1 << 40, 1 << 40], {"dtype": "F32", "shape": [], "data_offsets": [0, 4]}),
]
CLASSES = range(9)
SPEC = dict(backbones.build("y1").spec)


def learner() -> tuple[nn.Module, torch.optim.Optimizer]:
    network = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    return network, make_optimizer(network, OptimConfig())


def write(folder: Path) -> Path:
    """A checkpoint of two ranks."""
    torch.manual_seed(0)
    network, optimizer = learner()
    network(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    table = torch.randn(len(CLASSES), 2, 4)
    run = RUN.__class__(**{**RUN.__dict__, "backbone": SPEC})
    parts = [
        Part(
            shared=tensors.shared_tensors(network, optimizer, nn.Module()),
            own={"statistics": torch.full((2,), float(rank))},
            centres=half,
            first=first,
            finite=True,
        )
        for rank, (first, half) in enumerate([(0, table[:5]), (5, table[5:])])
    ]
    path = folder / "step-00000007"
    path.mkdir(parents=True)
    write_parts(path, run, parts)
    return path


def read(path: Path) -> dict[str, Tensor]:
    """All that can be read from a checkpoint."""
    saved = record.read(path)
    network, optimizer = learner()
    tensors.read_shared_(path, network, optimizer)
    table = torch.zeros(len(CLASSES), 2, 4)
    tensors.check_stored(path, saved, kind_of(table))
    tensors.read_rows_(path, CLASSES.start, table)
    found = dict(tensors.shared_tensors(network, optimizer, nn.Module()))
    found["centres"] = table
    found["numbers"] = tensors.read_centres(path, CLASSES)
    for rank in range(2):
        found[f"statistics {rank}"] = tensors.read_own(path, rank, "statistics", torch.empty(2))
    if saved.run.backbone != SPEC:
        build_checked(saved.run.backbone, tensors.backbone_shapes(path), path)
    return found


def sign(path: Path) -> None:
    """What an attacker does: checksums that fit."""
    names = ["rank-00000.safetensors", "rank-00001.safetensors", "run.json"]
    lines = (f"{hashlib.sha256((path / n).read_bytes()).hexdigest()}  {n}\n" for n in names)
    (path / "SHA256SUMS").write_text("".join(lines))


def changed(content: bytes, draw: random.Random) -> bytes:
    """A file with some bytes flipped, cut, inserted, zeroed or repeated."""
    at, size = draw.randrange(len(content) + 1), draw.choice([1, 1, 2, 8, 50])
    middle = content[at : at + size]
    if (kind := draw.randrange(5)) == 0:
        middle = bytes(byte ^ (1 << draw.randrange(8)) for byte in middle)
    elif kind == 1:
        return content[:at]
    elif kind == 2:
        middle += draw.randbytes(size)
    elif kind == 3:
        middle = bytes(len(middle))
    else:
        middle = middle * draw.choice([2, 3, 1000])
    return content[:at] + middle + content[at + size :]


def changed_json(text: bytes, draw: random.Random) -> bytes:
    """JSON with a nasty value, or none, in a place of it."""
    values = json.loads(text)
    place, depth = values, draw.randrange(1, 4)
    for _ in range(depth):
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = draw.choice(keys)
        if not isinstance(place[key], dict | list) or not place[key]:
            break
        place = place[key]
    keys = list(place) if isinstance(place, dict) else list(range(len(place)))
    key = draw.choice(keys)
    if draw.random() < 0.2:
        del place[key]
    else:
        place[key] = draw.choice(NASTY)
    return json.dumps(values).encode()


def mutate(path: Path, draw: random.Random) -> None:
    """Change one file, or the JSON in it."""
    file = draw.choice(sorted(path.iterdir()))
    content = file.read_bytes()
    if draw.random() < 0.5 or file.name == "SHA256SUMS":
        file.write_bytes(changed(content, draw))
    elif file.name == "run.json":
        file.write_bytes(changed_json(content, draw))
    else:
        (size,) = struct.unpack("<Q", content[:8])
        header = changed_json(content[8 : 8 + size], draw)
        file.write_bytes(struct.pack("<Q", len(header)) + header + content[8 + size :])


def fuzz(folder: Path, count: int) -> dict[str, int]:
    """Change a checkpoint `count` times; how often it was found damaged, refused and read."""
    whole = write(folder / "whole")
    truth = read(whole)
    path, draw = folder / "changed", random.Random(11)
    tally = {"damaged": 0, "refused": 0, "read": 0}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(count):
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(whole, path)
        mutate(path, draw)
        wrong = damage(path, Group())
        if wrong is None:
            found = read(path)
            assert all(torch.equal(found[name], truth[name]) for name in truth)
            continue
        assert len(wrong) < 500
        tally["damaged"] += 1
        sign(path)
        assert damage(path, Group()) is None
        said = None
        try:
            read(path)  # other numbers, which nobody can tell
        except (ValueError, OSError) as error:
            said = str(error)
        assert said is None or len(said) < 1500, said
        tally["read" if said is None else "refused"] += 1
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 300_000  # KiB
    return tally


def test_a_changed_checkpoint_is_one_line_and_runs_nothing(tmp_path: Path) -> None:
    tally = fuzz(tmp_path, 200)
    assert tally["damaged"] > 170
    assert tally["refused"] > 80
    assert tally["read"] > 10


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_twenty_thousand_changes(tmp_path: Path) -> None:
    print(fuzz(tmp_path, 20_000))
