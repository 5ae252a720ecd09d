"""Whether the device computes what it should: kernels, heads and training steps against the truth.

These are the tests marked `gpu`, and more of them, without pytest.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from facescale.data.loader import Loader
from facescale.data.synthetic import Synthetic
from facescale.head import MarginHead, walks
from facescale.head.draw import draw_rows
from facescale.head.walks.blocks import BlockWalk
from facescale.kernels.cuda import available
from facescale.random import Permutation, key
from facescale.timing.device.bench import Bench, Row
from facescale.timing.device.head_truth import relative, require_equal, step_errors
from facescale.timing.device.norm_truth import norm_errors
from facescale.timing.steps import config_of, own_step
from facescale.training.state import build

EXACT, DIM = 1e-5, 512
PRODUCTS = {"tf32x3": EXACT, "tf32": 0.02, "bf16": 0.2}
"""Largest relative error of a step by how its products are rounded."""
STORED = {"float32": EXACT, "bfloat16": 2**-7, "int8": 2 / 127}
"""Of a row that has moved, by how it is stored; relative to its largest numbers."""
SHAPES: tuple[tuple[tuple[int, ...], int], ...] = (((8, 64, 56, 56), 64), ((3, 24, 9, 9), 1))
"""Images, and how many slopes their PReLU has."""
IMAGES = {"float32": EXACT, "bfloat16": 2**-7, "float16": 2**-10}

Errors = dict[str, float]


class Check(NamedTuple):
    """What is checked, the largest error allowed, and what computes all errors."""

    what: str
    limit: float
    errors: Callable[[], Errors]


def run(bench: Bench) -> None:
    """The most telling checks first: the path that training takes."""
    listed = [
        Check("head, float32 rows: two steps", EXACT, partial(head_errors, bench, "float32")),
        Check("draws, permutations, random bits", 0.0, partial(same_bits, bench)),
        Check("two training steps", 1e-4, partial(training_errors, bench)),
    ]
    if bench.on_cuda:
        listed += [
            Check("no host read in a training step", 0.0, partial(no_host_reads, bench)),
            Check("batches are pinned", 0.0, partial(pinned, bench)),
        ]
    kernels = bench.on_cuda and available()
    if bench.on_cuda and not kernels:
        bench.notes.add({"what": "kernels", "failure": "triton is not installed"})
    for products, stored in (("tf32x3", "float32"), ("bf16", "bfloat16"), ("tf32", "int8")):
        if stored != "float32":
            check = partial(head_errors, bench, stored)
            listed.append(Check(f"head, {stored} rows: two steps", STORED[stored], check))
        listed += _head_kernels(bench, products, stored) if kernels else []
    listed += _norm_kernels(bench) if kernels else []
    for one in listed:
        what = {"what": one.what, "limit": one.limit}
        bench.notes.measure(what, partial(_judged, one))


def _head_kernels(bench: Bench, products: str, stored: str) -> Iterator[Check]:
    """Whole steps by the operators: drawn rows, all rows, copies of a shard."""
    limit = max(PRODUCTS[products], STORED[stored])
    rows, samples = bench.sizes.checked
    for gather, parts, copies in ((True, 2, False), (False, 1, False), (True, 2, True)):
        what = f"head kernels, {stored} rows, {products}"
        what += ", drawn" if gather else ", all, no momentum, half of the logits kept"
        kept = None if gather else rows // 2
        check = partial(
            step_errors, stored, parts, DIM, rows, samples, gather, products, kept, copies,
            bench.device,
        )  # fmt: skip
        yield Check(what + (", two copies" if copies else ""), limit, check)


def _norm_kernels(bench: Bench) -> Iterator[Check]:
    for dtype, limit in IMAGES.items():
        for shape, slopes in SHAPES:
            check = partial(norm_errors, shape, dtype, slopes, True, device=bench.device)
            yield Check(f"norm kernels, {dtype}, {shape}", limit, check)


def _judged(check: Check) -> Row:
    errors = check.errors()
    worst = max(errors, key=lambda name: errors[name])
    # A comparison with NaN is false.
    return {"error": errors[worst], "of": worst, "passed": errors[worst] <= check.limit}


def head_errors(bench: Bench, stored: str, walk: Any = None) -> Errors:
    """Two sampled steps of a head on the device, against float64 on the CPU, which draws the same.

    Rows of few bits are rounded at random by the device's head only, so they differ by a step.
    """
    dtype = getattr(torch, stored)
    sizes, cpu = bench.sizes.checked, torch.device("cpu")
    truth, _ = _two_steps(cpu, torch.float64, BlockWalk, *sizes)
    found, drawn = _two_steps(bench.device, dtype, walk, *sizes)
    errors = {}
    for name, value in found.items():
        if stored == "float32" or name in ("loss", "gradient"):
            # The first step sees rows that were rounded to the nearest.
            errors[name] = relative(value, truth[name])
        else:
            largest = truth[name].abs().max()
            errors[name] = float((value - truth[name]).abs().max() / largest) / 4
    require_equal(drawn, _two_steps(cpu, torch.float32, None, *sizes)[1], "the draw")
    return errors


def _two_steps(
    device: torch.device, dtype: torch.dtype, walk: Any, num_rows: int, samples: int
) -> tuple[dict[str, Tensor], Tensor]:
    """Loss, gradient and rows after two steps, float64 on the CPU; and the rows of the second."""
    with only(walk):
        head = MarginHead(num_rows, DIM, sample_rate=0.3, scale=16.0, dtype=dtype, device=device)
        head.centres.start_()
        random = torch.Generator().manual_seed(5)
        for _ in range(2):
            embeddings = torch.randn(samples, DIM, generator=random).to(device).requires_grad_()
            labels = torch.randint(num_rows, (samples,), generator=random).to(device)
            sample = head.draw(labels)
            loss = head(embeddings, sample, 0.1)
            loss.backward()
        head.settle()
    assert embeddings.grad is not None
    rows = sample.compact().rows
    assert rows is not None
    weight, velocity = head.centres.read(slice(0, num_rows))
    found = {"loss": loss, "gradient": embeddings.grad, "rows": weight, "momentum": velocity}
    return {name: value.detach().double().cpu() for name, value in found.items()}, rows.cpu()


@contextmanager
def only(walk: Any) -> Iterator[None]:
    """Let every head of this process take that walk; None: whichever serves first."""
    before = list(walks.WALKS)
    walks.WALKS[:] = before if walk is None else [walk]
    try:
        yield
    except StopIteration:  # no walk is left
        raise ValueError(f"{walk.__name__} does not serve this device") from None
    finally:
        walks.WALKS[:] = before


def same_bits(bench: Bench) -> Errors:
    """Random bits, permutations and draws are those of the CPU."""
    words, places = torch.arange(10_000) * 2**20, torch.arange(5000)
    own = torch.randint(-500, 2000, (64,), generator=torch.Generator().manual_seed(0))
    shuffle = Permutation(360_232, key(3))
    for what, work in (
        ("a random word", lambda t: key(3).child(t(words)).bits(7)),
        ("a permutation", lambda t: shuffle(t(places))),
        ("the inverse of a permutation", lambda t: shuffle.inverse(t(places))),
        ("a drawn row", lambda t: torch.cat(draw_rows(t(own), 1500, 200, key(3)))),
    ):
        here, there = work(lambda t: t), work(lambda t: t.to(bench.device))
        require_equal(there.cpu(), here, what)
    return {"bits": 0.0}


def training_errors(bench: Bench) -> Errors:
    """Weights after two steps of the trainer in float32, against the CPU in float64."""
    found = {}
    for precision, device in (("float64", torch.device("cpu")), ("float32", bench.device)):
        config = config_of("y1", 4, 200, 0.5, precision=precision, lr=0.01)
        state = build(config, device)
        prepare = own_step(config, device.type, state)
        for _ in range(2):
            prepare()()
        state.head.settle()
        weights = [p.detach().double().cpu().flatten() for p in state.backbone.parameters()]
        found[precision] = torch.cat([*weights, state.head.centres.full().double().cpu().flatten()])
    return {"weights": relative(found["float32"], found["float64"])}


def no_host_reads(bench: Bench) -> Errors:
    """Two training steps in which torch refuses to wait for the device."""
    config = config_of("y1", 8, 200, 0.5, lr=0.01)
    prepare = own_step(config, bench.device.type)
    for _ in range(2):
        prepare()()
    steps = [prepare() for _ in range(2)]
    torch.cuda.synchronize(bench.device)
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in steps:
            step()
    finally:
        torch.cuda.set_sync_debug_mode(before)
    return {"reads": 0.0}


def pinned(bench: Bench) -> Errors:
    """What the loader hands over lies in pinned memory, so that copies need not wait."""
    with Loader(Synthetic(5, 50), 8, seed=0, pin_memory=True) as batches:
        batch = next(batches)
    return {"not pinned": float(not (batch.images.is_pinned() and batch.labels.is_pinned()))}
