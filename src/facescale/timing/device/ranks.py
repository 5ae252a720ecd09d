"""Rank 0 of 8 in a process group that sends nothing: one rank's real work, without the network."""

from functools import partial
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from facescale.timing.clock import time_calls
from facescale.timing.device.bench import Bench, Row
from facescale.timing.device.step_times import Setting, config_for, measure_step, row_of, step_row
from facescale.timing.steps import own_step
from facescale.training.state import build

RANKS = 8


def run(bench: Bench) -> None:
    """One device first, then rank 0 of 8 at the same batch, model parallel and data parallel."""
    sizes = bench.sizes
    (dataset, identities), batch = next(iter(sizes.identities.items())), sizes.batches[-2:][0]
    chosen = [
        Setting(sizes.networks[0], batch, sizes.precisions[0], identities, dataset, rate)
        for rate in (0.1, 1.0)
    ]
    for setting in chosen:
        measure_step(bench, setting)
    join()
    for setting in chosen:
        for shards in (RANKS, 1):
            what = row_of(setting) | {"ranks": RANKS, "shards": shards}
            bench.notes.measure(what, partial(_time, bench, setting, shards))


def join(ranks: int = RANKS) -> None:
    """Make this process rank 0 of so many: collectives return at once, with this rank's numbers."""
    dist.init_process_group("fake", rank=0, world_size=ranks, store=FakeStore())
    for name in ("reduce_scatter_single", "reduce_scatter_tensor"):
        if hasattr(dist, name):
            # torch 2.11 leaves the result as it found the memory, which may be NaN.
            setattr(dist, name, _keep_part)


def _keep_part(output: Tensor, tensor: Tensor, *_: Any, **__: Any) -> None:
    output.copy_(tensor.view(-1, *output.shape)[0])


def _time(bench: Bench, setting: Setting, shards: int) -> Row:
    config = config_for(setting, shards=shards)
    state = build(config, bench.device)
    prepare = own_step(config, bench.device.type, state)
    timed = time_calls(lambda: prepare()(), bench.device, seconds=bench.sizes.seconds)
    row = step_row(bench, setting, timed)
    sent = sum(group.traffic.sent.total() for group in state.groups())
    return row | {
        "images_per_s_of_all": RANKS * row["images_per_s"],
        "sent_mib": _per_step(sent, state.step),
    }


def _per_step(sent: int, steps: int) -> float:
    return sent / 2**20 / max(1, steps)
