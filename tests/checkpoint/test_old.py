"""Checkpoints of format 2, torch's own: converted to the bit, and nothing in them is run."""

import hashlib
import io
import json
import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from facescale.checkpoint import old
from facescale.checkpoint.folder import damage
from facescale.cli import main
from facescale.config import HeadConfig, OptimConfig
from facescale.distributed import Group
from facescale.training import TrainState, build
from facescale.training.resume import resume_
from facescale.training.statistics import read_statistics
from runs import CPU, losses, small_run


def write_old(state: TrainState, output: Path) -> Path:
    """A checkpoint as version 0.1 wrote it, of one rank."""
    from torch.distributed.checkpoint.filesystem import FileSystemWriter
    from torch.distributed.checkpoint.state_dict import get_state_dict
    from torch.distributed.checkpoint.state_dict_saver import save

    path = output / "checkpoints" / f"step-{state.step:08d}"
    path.mkdir(parents=True)
    model, optim = get_state_dict(state.backbone, state.optimizer)
    tensors = {
        "backbone": model,
        "optimizer": optim,
        "centres": state.head.centres.table,
        "statistics": read_statistics(state.backbone)[None],
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save(tensors, storage_writer=FileSystemWriter(path), no_dist=True)
    numbers = {
        "format": 2,
        "ranks": 1,
        "num_classes": state.head.num_classes,
        "backbone": state.backbone.spec,
        "step": state.step,
        "position": state.position,
        "skipped": 0,
        "seed": 0,
        "scaler": {},
    }
    (path / "run.json").write_text(json.dumps(numbers))
    sign(path)
    return path


def sign(path: Path) -> None:
    names = [*sorted(file.name for file in path.glob("__*")), ".metadata", "run.json"]
    lines = (f"{hashlib.sha256((path / n).read_bytes()).hexdigest()}  {n}\n" for n in names)
    (path / "SHA256SUMS").write_text("".join(lines))


def optimizer_state(state: TrainState) -> dict[str, Tensor]:
    return {
        f"{name} {key}": value
        for name, parameter in state.backbone.named_parameters()
        for key, value in state.optimizer.state.get(parameter, {}).items()
    }


@pytest.mark.usefixtures("tiny_y1")
@pytest.mark.parametrize("changes", [{}, {"rows": "bfloat16"}, {"rows": "int8"}, {"name": "adamw"}])
def test_a_run_goes_on_from_a_converted_checkpoint_to_the_bit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any]
) -> None:
    parts: dict[str, Any] = {"optim": OptimConfig(lr=0.02, name=changes.get("name", "sgd"))}
    parts["head"] = HeadConfig(rows=changes.get("rows", "float32"))
    config = small_run(**parts)
    state = build(config, CPU)
    losses(state, 2)
    path = write_old(state, tmp_path)
    with pytest.raises(ValueError, match="facescale unpack"):
        resume_(build(config, CPU), tmp_path)

    main(["unpack", str(tmp_path), "--old"])
    said = capsys.readouterr()
    assert said.out == f"{path}\n"
    assert "convert only those whose source you trust" in said.err
    assert {entry.name for entry in path.parent.iterdir()} == {path.name, f"{path.name}.format2"}
    assert damage(path, Group()) is None
    with pytest.raises(ValueError, match=r"has no \.metadata: it is not of format 2, and needs no"):
        old.convert(path)

    resumed = build(config, CPU)
    assert resume_(resumed, tmp_path) == []
    assert (resumed.step, resumed.position) == (2, 8)
    assert torch.equal(resumed.head.centres.table, state.head.centres.table)
    expected, found = optimizer_state(state), optimizer_state(resumed)
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert losses(resumed, 2) == losses(state, 2)


class Evil:
    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.victim,)


@pytest.mark.usefixtures("tiny_y1")
def test_converting_runs_nothing(tmp_path: Path) -> None:
    state = build(small_run(), CPU)
    path, victim = write_old(state, tmp_path), tmp_path / "victim"
    metadata = (path / ".metadata").read_bytes()
    (path / ".metadata").write_bytes(pickle.dumps(Evil(victim)))
    sign(path)
    with pytest.raises(ValueError, match=r"\.metadata is not readable: pathlib\S* does not belong"):
        old.convert(path)
    (path / ".metadata").write_bytes(metadata)
    torch.save(Evil(victim), path / "__0_0.distcp")
    sign(path)
    with pytest.raises(ValueError, match=r"__0_0\.distcp is damaged"):
        old.convert(path)
    assert not victim.exists()
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


@pytest.mark.usefixtures("tiny_y1")
def test_a_damaged_old_checkpoint_is_not_converted(tmp_path: Path) -> None:
    state = build(small_run(), CPU)
    path = write_old(state, tmp_path)
    content = bytearray((path / "__0_0.distcp").read_bytes())
    content[len(content) // 2] ^= 1
    (path / "__0_0.distcp").write_bytes(content)
    with pytest.raises(ValueError, match=r"__0_0\.distcp differs from its checksum"):
        old.convert(path)


def test_members_of_enums_are_read_as_every_python_writes_them() -> None:
    name = "torch.distributed.checkpoint.metadata\n_MEM_FORMAT_ENCODING\n"
    member = f"cbuiltins\ngetattr\n(c{name}S'TORCH_CONTIGUOUS_FORMAT'\ntR."
    assert isinstance(old._Unpickler(io.BytesIO(member.encode())).load(), old._Plain)
    with pytest.raises(pickle.UnpicklingError, match="'system' does not belong there"):
        old._Unpickler(io.BytesIO(b"cbuiltins\ngetattr\n(ctorch\nSize\nS'system'\ntR.")).load()
