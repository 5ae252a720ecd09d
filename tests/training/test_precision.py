"""Which arithmetic a run takes, and what it says of it."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from facescale.config import Config, TrainConfig
from facescale.training import build, precision, train
from facescale.training.precision import precision_note, settled
from runs import CPU, small_run


def asked(name: str) -> Config:
    return small_run(train=replace(small_run().train, precision=name))  # type: ignore[arg-type]


@pytest.mark.parametrize(("hardware", "taken"), [(True, "bf16"), (False, "float32")])
def test_auto_takes_what_the_hardware_has(
    monkeypatch: pytest.MonkeyPatch, hardware: bool, taken: str
) -> None:
    monkeypatch.setattr(precision, "has_bfloat16", lambda _: hardware)
    assert settled(asked("auto"), "cpu").train.precision == taken
    assert build(asked("auto"), CPU).config.train.precision == taken
    said = precision_note(asked("auto"), asked(taken), "cpu")
    assert said is not None
    assert f"auto: {taken}, since this cpu {'has' if hardware else 'lacks'} bfloat16" in said


def test_what_is_emulated_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "has_bfloat16", lambda _: False)
    for name, words in (("bf16", "emulates slowly"), ("fp16", "emulates slowly")):
        assert words in str(precision_note(asked(name), asked(name), "cpu"))
    for name in ("float32", "float64", "tf32"):
        assert settled(asked(name), "cpu") == asked(name)
        assert precision_note(asked(name), asked(name), "cpu") is None


def test_a_cpu_has_what_its_flags_say() -> None:
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists() or "flags" not in cpuinfo.read_text():
        pytest.skip("this system does not tell an x86 processor's flags")
    flags = cpuinfo.read_text().split()
    assert precision.has_bfloat16("cpu") is ("avx512_bf16" in flags or "amx_bf16" in flags)
    assert not precision.has_bfloat16("meta")


@pytest.mark.usefixtures("tiny_y1")
def test_a_run_writes_down_which_it_took(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "has_bfloat16", lambda _: False)
    config = small_run(train=TrainConfig(batch_size=4, steps=1, precision="auto"))
    train(config, tmp_path)
    assert "precision: float32" in (tmp_path / "config.yaml").read_text()
    assert "train.precision auto: float32" in (tmp_path / "training.log").read_text()


def test_dtypes_are_torchs() -> None:
    assert precision.PRECISIONS["bf16"] == torch.bfloat16
    assert precision.PRECISIONS["tf32"] == torch.float32
