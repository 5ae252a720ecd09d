"""Forward and backward pass of a backbone: network x batch x precision, ours and plain torch's."""

from functools import partial

import torch

from facescale import backbones
from facescale.timing.baselines import settle_torch
from facescale.timing.clock import time_calls
from facescale.timing.device.bench import Bench, Row, peaks
from facescale.timing.steps import config_of, flop, passes, pixels
from facescale.training.state import build

TWO = 2  # identities, so that the head that comes with a run takes no memory


def run(bench: Bench) -> None:
    """The largest batch of all networks first; compiled networks last, which take minutes."""
    sizes = bench.sizes
    # A compiler takes a minute for a network: only the first precision and batch.
    for ways, batches, precisions in (
        (("eager", "torch"), sizes.batches, sizes.precisions),
        (("compile",), sizes.batches[:1] if bench.on_cuda else (), sizes.precisions[:1]),
    ):
        for batch in batches:
            for precision in precisions:
                for network in sizes.networks:
                    for way in ways:
                        what = {"network": network, "batch": batch, "precision": precision}
                        work = partial(_time, bench, network, batch, precision, way)
                        bench.notes.measure(what | {"way": way}, work)


def _time(bench: Bench, network: str, batch: int, precision: str, way: str) -> Row:
    device = bench.device
    images = pixels(batch).to(device)
    if way == "torch":
        settle_torch(device, precision)
        plain = backbones.build(network).to(device)
        module: torch.nn.Module = plain.train()
        images, dim = images.float().contiguous(), plain.embedding_dim
    else:
        config = config_of(network, batch, TWO, 1.0, precision=precision, compile=way == "compile")
        state = build(config, device)
        module, dim = state.model.train(), state.backbone.embedding_dim
    prepare = passes(module, dim, images, precision)
    timed = time_calls(lambda: prepare()(), device, seconds=bench.sizes.seconds)
    return {
        "ms": 1e3 * timed.median,
        "spread": timed.spread,
        "images_per_s": batch / timed.median,
        "flop": flop(network) * batch,
        **peaks(device),
    }
