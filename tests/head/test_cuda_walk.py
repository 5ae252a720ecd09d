"""Whole steps of a head through the CUDA walk, in Triton's interpreter on CPU tensors."""

from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

import facescale
from facescale.distributed import Group, Mesh
from facescale.head import checks, draw
from facescale.head.walks import blocks, cuda
from facescale.head.walks.cuda import CudaWalk
from host_reads import HostReads
from reference import dense_combined, dense_filter, dense_step
from triton_process import compiled, interpreted, needs_triton

pytestmark = needs_triton

CLASSES, DIM, BATCH, LR = 100, 32, 9, 0.2
MARGIN, SCALE, DECAY = (1.0, 0.5, 0.0), 32.0, 5e-4


@dataclass(frozen=True)
class Twins(Group):
    """Two copies of a shard that see the same batch: what one has, the other has."""

    size: int = 2

    def all_reduce_(self, tensor: Tensor) -> Tensor:
        return tensor.mul_(2)

    def all_gather(self, tensor: Tensor) -> Tensor:
        return torch.stack([tensor, tensor])


def make_head(**kind: Any) -> facescale.MarginHead:
    return facescale.MarginHead(
        CLASSES, DIM, facescale.combined(*MARGIN), SCALE, **({"weight_decay": DECAY} | kind)
    )


def batches(steps: int) -> list[tuple[Tensor, Tensor]]:
    random = torch.Generator().manual_seed(2)
    return [
        (
            torch.randn(BATCH, DIM, generator=random).requires_grad_(),
            torch.randint(CLASSES, (BATCH,), generator=random),
        )
        for _ in range(steps)
    ]


def rows_of(head: facescale.MarginHead) -> tuple[Tensor, Tensor]:
    weight, velocity = head.centres.read(slice(0, CLASSES))
    return weight.clone(), velocity.clone()


def take_steps(
    walk: str, steps: int, twins: bool = False, **kind: Any
) -> tuple[list[Tensor], list[list[int]], Tensor]:
    """Losses, gradients, weights and momenta of all steps; the rows drawn; the stored table."""
    numbers, drawn = [], []
    with ExitStack() as patches:
        if walk == "cuda":  # draws in torch's operations, as on a device
            patches.enter_context(mock.patch.object(draw, "library", return_value=None))
        else:
            no = staticmethod(lambda step: False)
            patches.enter_context(mock.patch.object(CudaWalk, "serves", no))
        head = make_head(**kind)
        if twins:
            head.mesh = Mesh(replicate=Twins())
        head.centres.start_()
        for embeddings, labels in batches(steps):
            sample = head.draw(labels)
            rows = sample.compact().rows
            drawn.append(list(range(CLASSES)) if rows is None else rows.tolist())
            loss = head(embeddings, sample, LR)
            loss.backward()
            assert embeddings.grad is not None
            numbers += [loss.detach(), embeddings.grad, *rows_of(head)]
    return numbers, drawn, head.centres.table


def against_the_dense_truth(kind: dict[str, Any]) -> None:
    numbers, drawn, _ = take_steps("cuda", 3, **kind)
    head = make_head(**kind)
    head.centres.start_()
    weight, velocity = (part.double() for part in rows_of(head))
    for (embeddings, labels), rows in zip(batches(3), drawn, strict=True):
        loss, gradient, weight, velocity = dense_step(
            *(embeddings.detach().double(), labels, weight, velocity, rows),
            margin=dense_combined(*MARGIN),
            scale=SCALE,
            lr=LR,
            momentum=kind.get("momentum", 0.9),
            weight_decay=DECAY,
            others=dense_filter(kind.get("interclass_filter", 1.0)),
        )
        moved = velocity if kind.get("momentum", 0.9) else torch.zeros_like(velocity)
        for truth in (loss, gradient, weight, moved):
            ours = numbers.pop(0).double()
            # As for the walks on a CPU: float32 cosines, and three steps that follow each other.
            largest = truth.abs().max().item()
            torch.testing.assert_close(ours, truth, rtol=0, atol=1e-5 * largest)


FILTERED = {"sample_rate": 0.5, "interclass_filter": 0.1}
SIMPLE = {"sample_rate": 0.5, "momentum": 0.0}


@pytest.mark.parametrize("kind", [{}, {"sample_rate": 0.1}, SIMPLE, FILTERED], ids=str)
def test_float32_steps_are_the_dense_float64_ones(kind: dict[str, Any]) -> None:
    interpreted(against_the_dense_truth, kind)


def against_the_cpu(kind: dict[str, Any], twins: bool) -> None:
    there, here = take_steps("cuda", 2, twins, **kind), take_steps("cpu", 2, twins, **kind)
    assert there[1] == here[1]
    few_bits = kind.get("dtype", torch.float32) != torch.float32
    for place, (one, other) in enumerate(zip(there[0], here[0], strict=True)):
        largest = other.abs().max().item()
        if few_bits and place >= 2:
            # Rounding has the same random bits, so a number seldom crosses a level.
            assert ((one - other).abs() > 1e-4 * largest).float().mean() < 5e-3
            assert ((one - other).abs() <= 2.6 / 127 * largest).all()
            if place >= 4:
                continue  # such a number changes the second step
        tolerance = 5e-3 if few_bits and place >= 2 else 1e-5
        torch.testing.assert_close(one, other, rtol=0, atol=max(tolerance * largest, 1e-9))


@pytest.mark.parametrize(
    ("kind", "twins"),
    [
        ({"sample_rate": 0.1}, False),
        ({"dtype": torch.bfloat16, "sample_rate": 0.3}, False),
        pytest.param({"dtype": torch.int8}, False, marks=pytest.mark.slow),
        ({"dtype": torch.int8, "sample_rate": 0.3, "momentum": 0.0}, False),
        ({"sample_rate": 0.3}, True),
        pytest.param({"dtype": torch.bfloat16, "sample_rate": 0.3}, True, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_the_rows_and_numbers_are_those_of_the_cpu(kind: dict[str, Any], twins: bool) -> None:
    interpreted(against_the_cpu, kind, twins)


def kept_or_again() -> None:
    with mock.patch.object(cuda, "LEAST_ROWS", 64), mock.patch.object(cuda, "SHARED_ROWS", 64):
        for twins in (False, True):
            kept, again, partly = (
                take_steps("cuda", 1, twins, logits_budget=budget)
                for budget in (1 << 20, 0, 4 * BATCH * 64)
            )
            for other in (again, partly):
                assert torch.equal(other[2], kept[2])
                # The gradient of the batch is summed up portion by portion.
                torch.testing.assert_close(other[0][1], kept[0][1], rtol=1e-5, atol=1e-7)


def test_what_is_kept_between_the_passes_moves_no_row_otherwise() -> None:
    interpreted(kept_or_again)


def products_by_option() -> None:
    exact, tf32, bf16 = (take_steps("cuda", 1, products=p)[0] for p in ("tf32x3", "tf32", "bf16"))
    # The interpreter computes tf32 in float32.
    assert torch.equal(exact[1], tf32[1])
    error = ((bf16[1] - exact[1]).norm() / exact[1].norm()).item()
    assert 1e-4 < error < 0.1


def test_products_round_their_factors_by_option() -> None:
    interpreted(products_by_option)
    with pytest.raises(ValueError, match="products must be one of tf32x3, tf32, bf16, got 'fp8'"):
        make_head(products="fp8")


def bad_batches() -> None:
    head = make_head(sample_rate=0.3)
    (embeddings, labels), (bad, _) = batches(2)
    with torch.no_grad():
        bad[3, 5] = torch.nan
    head(embeddings, labels, LR).backward()
    before = head.centres.table.clone()
    loss = head(bad, labels, LR)
    loss.backward()
    assert loss.isnan()
    wrong = labels.clone()
    wrong[4:] = CLASSES + 7
    loss = head(embeddings, wrong, LR)  # step 2, from 0
    loss.backward()
    assert loss.isnan()
    assert torch.equal(head.centres.table, before)
    message = "step 2 of the head, which changed nothing: label 107 but num_classes is 100"
    with pytest.raises(ValueError, match=message):
        head(embeddings, labels, LR)
    head(embeddings, labels, LR).backward()
    head.settle()
    assert not torch.equal(head.centres.table, before)
    head.draw(wrong)
    with pytest.raises(ValueError, match="step 4 of the head"):
        head.settle()
    head.settle()


def test_a_bad_batch_moves_nothing_and_its_label_is_named_one_step_later() -> None:
    interpreted(bad_batches)


def lost_centre() -> None:
    head = make_head()
    head.centres.start_()
    head.centres.table[70, 0, 3] = torch.nan
    before = head.centres.table.clone()
    (embeddings, labels) = batches(1)[0]
    loss = head(embeddings, labels, LR)
    loss.backward()
    assert loss.isnan()
    torch.testing.assert_close(head.centres.table, before, rtol=0, atol=0, equal_nan=True)


def test_a_centre_that_is_not_finite_stops_the_step() -> None:
    interpreted(lost_centre)


def no_kernels() -> None:
    head = facescale.MarginHead(20, 24)  # 16 does not divide it
    with mock.patch.object(blocks.BlockWalk, "__init__", side_effect=AssertionError):
        assert not CudaWalk.serves(mock.Mock(centres=head.centres))
    for dtype, dim, serves in (
        (torch.float64, 32, False),
        (torch.float32, 32, True),
        (torch.int8, 48, True),
        (torch.float32, 1024, False),
    ):
        head = facescale.MarginHead(20, dim, dtype=dtype)
        assert CudaWalk.serves(mock.Mock(centres=head.centres)) == serves
        assert head._check_labels.deferred == serves


def test_it_serves_what_the_kernels_know_and_nothing_else() -> None:
    interpreted(no_kernels)
    assert not CudaWalk.serves(mock.Mock(centres=make_head().centres))  # a CPU, compiled kernels


def host_reads(walk: str) -> dict[str, int]:
    """Host reads of the second step."""
    head = make_head(sample_rate=0.3)
    (embeddings, labels), (again, _) = batches(2)
    with ExitStack() as patches:
        if walk == "blocks":
            no = staticmethod(lambda step: False)
            for name in ("cuda.CudaWalk", "cpu.CompiledWalk"):
                patches.enter_context(mock.patch(f"facescale.head.walks.{name}.serves", no))
            head._check_labels.deferred = False
        head(embeddings, labels, LR).backward()
        with HostReads() as spy:
            head(again, labels, LR).backward()
    return dict(spy.found)


def test_a_step_reads_nothing_from_the_device() -> None:
    assert interpreted(host_reads, "cuda") == {}
    assert sum(interpreted(host_reads, "blocks").values()) >= 5  # the spy sees what there is


def launches_without_values(kind: dict[str, Any]) -> list[str]:
    """A step on device "meta", which has no values: to read one is an error."""
    from facescale import kernels
    from facescale.kernels.cuda.resources import launches

    with (
        mock.patch.object(kernels.cuda, "_runs_on", return_value=True),
        mock.patch.object(torch, "autocast", return_value=nullcontext()),
        mock.patch.object(checks, "LateNumbers", mock.Mock()) as late,
        launches() as seen,
    ):
        late.return_value.read.return_value = 0, 0
        head = make_head(device="meta", **kind)
        head.centres._all_started = True
        for _ in range(2):
            embeddings = torch.randn(BATCH, DIM, device="meta").requires_grad_()
            head(embeddings, torch.zeros(BATCH, dtype=torch.long, device="meta"), LR).backward()
    return [launch.kernel.__name__.removesuffix("_kernel") for launch in seen]


@pytest.mark.parametrize("kind", [{}, FILTERED | {"dtype": torch.int8}], ids=str)
def test_a_step_needs_no_value_of_the_device(kind: dict[str, Any]) -> None:
    passes = ["draw"] * ("sample_rate" in kind)
    passes += ["forward", "join", "probability", "to_batch", "update"]
    assert compiled(launches_without_values, kind) == 2 * passes
