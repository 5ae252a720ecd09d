"""The head alone at the sizes of docs/gpu.md: three walks, and arcface_torch's plan of work."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from facescale.head.walks.blocks import BlockWalk
from facescale.head.walks.cpu import CompiledWalk
from facescale.head.walks.cuda import CudaWalk
from facescale.timing.baselines import DenseHead, OwnHead
from facescale.timing.clock import time_calls
from facescale.timing.device.bench import Bench, Row, peaks
from facescale.timing.device.ceilings import tf32_products
from facescale.timing.device.correctness import only
from facescale.timing.heads import build_head

DIM = 512


@dataclass(frozen=True)
class Way:
    """One way to take a step of the head."""

    walk: str
    kind: Callable[..., Any]
    only: Any = None
    rows: str = "float32"
    products: str = "float32"
    """How products round their factors."""


def ways(on_cuda: bool) -> list[Way]:
    """The most telling first: ours, arcface_torch's, the walk that is the fallback, fewer bits."""
    blocks = Way("blocks", OwnHead, BlockWalk)
    dense = Way("arcface_torch", DenseHead)
    if not on_cuda:
        return [Way("cpu", OwnHead, CompiledWalk), dense, blocks]

    def ours(rows: str, products: str) -> Way:
        return Way("cuda", OwnHead, CudaWalk, rows, products)

    return [
        ours("float32", "tf32x3"),
        dense,
        ours("float32", "bf16"),
        ours("bfloat16", "bf16"),
        blocks,
        ours("float32", "tf32"),
        Way("arcface_torch", DenseHead, products="tf32"),
        Way("arcface_torch", DenseHead, products="bf16"),
        ours("int8", "bf16"),
    ]


def run(bench: Bench) -> None:
    """Every size with our first way and arcface_torch's, then the other ways."""
    listed, sizes = ways(bench.on_cuda), bench.sizes
    for identities, rate in sizes.heads:
        for way in listed[:2]:
            _measure(bench, identities, rate, sizes.head_batch, way)
    # The head as it is in the full step of bf16, to tell how much of it is hidden there.
    _measure(bench, *sizes.heads[0], sizes.batches[0], listed[2 if bench.on_cuda else 0])
    for way in listed[2:]:
        for identities, rate in sizes.heads:
            _measure(bench, identities, rate, sizes.head_batch, way)


def _measure(bench: Bench, identities: int, rate: float, batch: int, way: Way) -> None:
    what = {
        "identities": identities,
        "rate": rate,
        "batch": batch,
        "walk": way.walk,
        "rows": way.rows,
        "products": way.products,
    }
    bench.notes.measure(what, partial(_time, bench, identities, rate, batch, way))


def _time(bench: Bench, identities: int, rate: float, batch: int, way: Way) -> Row:
    drawn = int(identities * rate)
    options: dict[str, Any] = {}
    if way.kind is OwnHead:
        # All work on one stream, so that each call's time is that of all its work.
        options = {"dtype": getattr(torch, way.rows), "overlap": False}
        options |= {"products": way.products} if way.walk == "cuda" else {}
    elif way.products == "bf16":
        options = {"precision": "bf16"}
    with only(way.only), tf32_products(way.products == "tf32"):
        prepare = build_head(way.kind, identities, rate, batch, DIM, bench.device.type, **options)
        timed = time_calls(lambda: prepare()(), bench.device, seconds=bench.sizes.seconds / 2)
    number = torch.empty(0, dtype=getattr(torch, way.rows)).element_size()
    return {
        "ms": 1e3 * timed.median,
        "spread": timed.spread,
        # The least: read the weight, read weight and momentum, write both.
        "bytes": 5.0 * drawn * DIM * number,
        "flop": 6.0 * drawn * DIM * batch,
        **peaks(bench.device),
    }
