"""What only a card can show: no wait in a step, streams and graphs that change no number."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from facescale.config import (
    BackboneConfig,
    Config,
    DataConfig,
    HeadConfig,
    OptimConfig,
    TrainConfig,
)
from facescale.training import TrainState, build, train_step
from facescale.training.finite import settle

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
CARD = torch.device("cuda", 0)


def make(name: str = "r18_half", overlap: bool = True, **train: Any) -> TrainState:
    config = Config(
        data=DataConfig(path="synthetic", num_classes=5000, num_images=640, threads=1),
        backbone=BackboneConfig(name=name),
        head=HeadConfig(sample_rate=0.5, overlap=overlap),
        optim=OptimConfig(lr=0.02, clip_norm=5.0),
        train=TrainConfig(**{"batch_size": 32, "steps": 20} | train),
    )
    return build(config, CARD)


def run(state: TrainState, count: int = 6) -> tuple[Tensor, Tensor]:
    """Losses of some steps, and the class centres behind them."""
    with state.loader() as loader:
        losses = [train_step(state, next(loader)) for _ in range(count)]
    settle(state)
    return torch.stack(losses).cpu(), state.head.centres.table.cpu()


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@pytest.mark.parametrize("name", ["r18_half", "y1"])
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_step_waits_for_nothing(name: str, precision: Any) -> None:
    state = make(name, precision=precision)
    with state.loader() as loader:
        batches = [next(loader) for _ in range(4)]
    for batch in batches[:2]:
        train_step(state, batch)
    torch.cuda.synchronize()
    try:
        torch.cuda.set_sync_debug_mode("error")
        for batch in batches[2:]:
            train_step(state, batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    settle(state)


def test_a_second_stream_changes_no_number() -> None:
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        (losses, table), (others, other_table) = run(make()), run(make(overlap=False))
    finally:
        torch.use_deterministic_algorithms(False)
    torch.testing.assert_close(losses, others, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(table, other_table, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("options", "tolerance"),
    [
        ({"graphs": True}, 1e-3),
        ({"graphs": True, "precision": "bf16"}, 2e-2),
        ({"recompute": True}, 1e-3),
        ({"recompute": True, "precision": "bf16"}, 2e-2),
    ],
    ids=str,
)
def test_options_change_no_number_but_for_rounding(
    options: dict[str, Any], tolerance: float
) -> None:
    options = {"graphs": False} | options
    plain = {key: value for key, value in options.items() if key == "precision"}
    losses = run(make(**options), 3)[0]
    others = run(make(graphs=False, **plain), 3)[0]
    torch.testing.assert_close(losses, others, rtol=tolerance, atol=tolerance)


def test_recomputed_blocks_take_less_memory() -> None:
    peaks = []
    for recompute in (False, True):
        state = make(recompute=recompute, batch_size=128, graphs=False)
        run(state, 2)
        torch.cuda.reset_peak_memory_stats()
        run(replace(state), 2)
        peaks.append(torch.cuda.max_memory_allocated())
        del state
        torch.cuda.empty_cache()
    assert peaks[1] < 0.8 * peaks[0]
