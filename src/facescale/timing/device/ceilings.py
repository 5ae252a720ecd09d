"""What the device can do at most: copy, gather and scatter of rows, products by precision."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from facescale.timing.clock import time_calls
from facescale.timing.device.bench import Bench, Row

DIM = 512
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def run(bench: Bench) -> None:
    """Memory first, then square products, then that of the head."""
    bench.notes.measure({"what": "copy"}, partial(_copy, bench))
    for name in ("gather", "scatter"):
        bench.notes.measure(
            {"what": f"{name} of rows of 2 KiB"}, partial(_rows, bench, scatter=name == "scatter")
        )
    side, tall = bench.sizes.product, int(bench.sizes.heads[0][0] * bench.sizes.heads[0][1])
    for shape in ((side, side, side), (tall, DIM, bench.sizes.head_batch)):
        for precision in bench.sizes.precisions:
            what: Row = {"what": "product", "precision": precision, "shape": list(shape)}
            bench.notes.measure(what, partial(_product, bench, shape, precision))


def _rate(bench: Bench, call: Callable[[], object], amount: float, unit: str) -> Row:
    timed = time_calls(call, bench.device, seconds=bench.sizes.seconds / 4)
    return {
        "rate": amount / timed.median,
        "unit": unit,
        "ms": 1e3 * timed.median,
        "spread": timed.spread,
    }


def _copy(bench: Bench) -> Row:
    source = torch.randn(bench.sizes.copy, device=bench.device)
    target = torch.empty_like(source)
    return _rate(bench, partial(target.copy_, source), 2 * source.nbytes, "B/s")


def _rows(bench: Bench, *, scatter: bool) -> Row:
    table = torch.randn(bench.sizes.table, DIM, device=bench.device)
    order = torch.randperm(bench.sizes.table, device=bench.device)[: bench.sizes.table // 10]
    rows = torch.index_select(table, 0, order)
    call: Callable[[], object] = partial(torch.index_select, table, 0, order, out=rows)
    if scatter:
        call = partial(table.index_copy_, 0, order, rows)
    return _rate(bench, call, 2 * rows.nbytes, "B/s")


def _product(bench: Bench, shape: tuple[int, int, int], precision: str) -> Row:
    m, k, n = shape
    dtype = DTYPES.get(precision, torch.float32)
    left = torch.randn(m, k, device=bench.device, dtype=dtype)
    right = torch.randn(k, n, device=bench.device, dtype=dtype)
    out: Tensor = left @ right
    with tf32_products(precision == "tf32"):
        call = partial(torch.mm, left, right, out=out)
        return _rate(bench, call, 2.0 * m * k * n, "FLOP/s")


@contextmanager
def tf32_products(allowed: bool) -> Iterator[None]:
    """Let CUDA's float32 products round their factors to tf32, or not."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
