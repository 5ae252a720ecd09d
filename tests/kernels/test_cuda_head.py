"""The head's Triton kernels, interpreted on the CPU, against the dense float64 truth.

What the interpreter does not show is in `test_cuda_compile.py`: rounding of tf32, races, registers.
"""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from facescale.random import Key
from facescale.timing.device.head_truth import (
    DECAY,
    FACTOR,
    FIRST_CLASS,
    KEY,
    LR,
    MOMENTUM,
    SCALE,
    Problem,
    decode,
    make_table,
    nan,
    poison,
    relative,
    step_errors,
)
from triton_process import interpreted, needs_triton

pytestmark = needs_triton


def noise(rows: Tensor, part: int, dim: int) -> Tensor:
    """The random bits that round these rows; (rows, dim) int64."""
    counters = part * dim + torch.arange(dim)
    random: Tensor = Key(*KEY).child(FIRST_CLASS + rows[:, None]).bits(counters)
    return random


SIZES = [(16, 37, 5), (64, 300, 33), (80, 131, 17), (512, 70, 20)]
"""dim, rows, samples: no tile divides them."""


@pytest.mark.parametrize(("dim", "count", "samples"), SIZES)
@pytest.mark.parametrize("gather", [True, False])
def test_a_step_is_that_of_dense_matrices(dim: int, count: int, samples: int, gather: bool) -> None:
    errors = interpreted(step_errors, "float32", 2, dim, count, samples, gather, "tf32x3")
    assert max(errors.values()) < 1e-5, errors


@pytest.mark.parametrize("samples", [0, 1, 128, 150])
def test_a_batch_has_any_size(samples: int) -> None:
    errors = interpreted(step_errors, "float32", 2, 32, 70, samples, True, "tf32x3")
    assert max(errors.values()) < 1e-5, errors


@pytest.mark.slow
@pytest.mark.parametrize(("dim", "count", "samples"), [(512, 1000, 128), (16, 50, 4096)])
def test_a_large_step_is_that_of_dense_matrices(dim: int, count: int, samples: int) -> None:
    errors = interpreted(step_errors, "float32", 2, dim, count, samples, True, "tf32x3")
    assert max(errors.values()) < 1e-5, errors


def test_rows_learn_without_momentum() -> None:
    errors = interpreted(step_errors, "float32", 1, 48, 90, 20, True, "tf32x3")
    assert max(errors.values()) < 1e-5, errors


@pytest.mark.parametrize("kept", [0, 64, 100])
def test_logits_are_kept_or_computed_again(kept: int) -> None:
    errors = interpreted(step_errors, "float32", 2, 48, 150, 20, True, "tf32x3", kept)
    assert max(errors.values()) < 1e-5, errors


@pytest.mark.parametrize("name", ["float32", "int8"])
def test_copies_of_a_shard_add_their_gradients_up_before_they_learn(name: str) -> None:
    errors = interpreted(step_errors, name, 2, 48, 90, 20, True, "tf32x3", None, True)
    assert errors.pop("after") < (1e-5 if name == "float32" else 0.02), errors
    assert errors.pop("moved") < (1e-5 if name == "float32" else 0.02)
    assert max(errors.values()) < 1e-5, errors


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_products_round_their_operands_by_option(precision: str) -> None:
    errors = interpreted(step_errors, "float32", 2, 80, 131, 17, True, precision)
    # The interpreter computes tf32 in float32, and cuts bfloat16 off.
    assert errors["logits"] < (1e-5 if precision == "tf32" else 2**-7), errors
    assert (errors["logits"] > 2**-11) == (precision == "bf16")
    assert max(errors.values()) < 0.2, errors


@pytest.mark.parametrize(("name", "step"), [("bfloat16", 2**-7), ("int8", 2 / 127)])
@pytest.mark.parametrize("parts", [1, 2])
def test_rows_of_few_bits_learn_up_to_their_rounding(name: str, step: float, parts: int) -> None:
    errors = interpreted(step_errors, name, parts, 80, 131, 17, True, "tf32x3")
    assert errors.pop("after") < step
    assert errors.pop("moved") < step
    assert max(errors.values()) < 1e-5, errors


def rounding(name: str) -> None:
    """Without a learning rate the new momentum is the gradient itself, rounded."""
    from facescale.kernels.cuda import head
    from facescale.kernels.cuda.operands import Drawn, Rates

    dim, index = 32, torch.tensor([3, -1, 0, 6])
    generator = torch.Generator().manual_seed(1)
    table = make_table(generator, 9, 2, dim, name)
    before = table.clone()
    total = torch.randn(len(index), dim, generator=generator)
    rates = Rates(0.0, 0.0, 0.0, KEY, FIRST_CLASS)
    drawn = Drawn(table, dim, len(index), index)
    head.apply_(drawn, total.clone(), torch.zeros(1, dtype=torch.int32), rates)
    used = index >= 0
    rows, total = index[used], total[used]
    random = noise(rows, 1, dim)
    if name == "bfloat16":
        expected = (total.view(torch.int32).long() + (random & 0xFFFF)) >> 16
        assert torch.equal(table[rows, 1].view(torch.int16).long(), expected)
    else:
        scale = (total.abs().amax(1) / 127) * 1.25
        level = (total / scale[:, None] + (random >> 8) * 2.0**-24).floor()
        assert torch.equal(table[rows, 1, dim:].contiguous().view(torch.float32)[:, 0], scale)
        assert torch.equal(table[rows, 1, :dim].view(torch.int8).float(), level)
        assert torch.equal(table[rows, 0, dim:], before[rows, 0, dim:])  # it still fits
    assert (decode(table, dim) - decode(before, dim))[rows, 0].abs().max() < 2**-9
    others = [row for row in range(9) if row not in rows]
    assert torch.equal(table[others], before[others])


@pytest.mark.parametrize("name", ["bfloat16", "int8"])
def test_rounding_is_a_function_of_key_class_part_and_column(name: str) -> None:
    interpreted(rounding, name)


def lost_row() -> None:
    """NaN as a GPU makes it, with all bits set."""
    from facescale.kernels.cuda import head
    from facescale.kernels.cuda.operands import Drawn, Rates

    table = torch.zeros(4, 1, 36, dtype=torch.uint8)
    total = torch.ones(4, 32)
    total.view(torch.int32)[2, 5] = 0x7FFFFFFF
    drawn = Drawn(table, 32, 4)
    head.apply_(drawn, total, torch.zeros(1, dtype=torch.int32), Rates(0.1, 0.9, 0.0))
    scale = table[:, 0, 32:].contiguous().view(torch.float32)[:, 0]
    assert scale.isfinite().tolist() == [True, True, False, True]
    halves = torch.zeros(4, 1, 32, dtype=torch.bfloat16)
    drawn = Drawn(halves, 32, 4)
    head.apply_(drawn, total, torch.zeros(1, dtype=torch.int32), Rates(0.1, 0.9, 0.0, KEY))
    assert halves.isnan().nonzero().tolist() == [[2, 0, 5]]


def test_a_row_that_is_not_finite_stays_so() -> None:
    interpreted(lost_row)


def empty_slots() -> None:
    """A step with empty slots is the step without them."""
    from facescale.kernels.cuda import head
    from facescale.kernels.cuda.operands import Drawn, Rates

    with poison():
        problem = Problem("float32", 2, 32, 75, 9, True)
        assert problem.index is not None
        slots = torch.arange(75) + torch.arange(75) // 5  # every sixth one stays empty
        index = torch.full((100,), -1)
        index[slots] = problem.index
        own = torch.where(problem.own >= 0, slots[problem.own], -1)
        drawn, logits = Drawn(problem.table, 32, 100, index), nan(100, 9)
        seen = head.forward(drawn, problem.unit, own, SCALE, "tf32x3", logits)
        assert (seen.log_sum - problem.log_sum).abs().max() < 1e-5
        factor, log_sum = torch.tensor(FACTOR), problem.log_sum.float()
        radial = head.probability_(
            logits, seen.inverse, log_sum, problem.to_own, own, factor, SCALE
        )
        assert (seen.inverse[index < 0] == 0).all()
        assert (logits[index < 0] == 0).all()
        assert relative(head.to_batch(drawn, logits, "tf32x3"), problem.to_batch) < 1e-5
        gradient = head.gradient(drawn, logits, problem.unit, radial, "tf32x3")
        assert relative(gradient[slots], problem.gradient) < 1e-5
        assert (gradient[index < 0] == 0).all()
        rates = Rates(LR, MOMENTUM, DECAY)
        for bad in (1, 0):
            flag = torch.tensor([bad], dtype=torch.int32)
            head.update_(drawn, logits, problem.unit, radial, flag, rates, "tf32x3")
            assert torch.equal(problem.table, problem.before) == bool(bad)
    assert relative(problem.table[problem.rows], problem.after) < 1e-5


def test_empty_slots_change_nothing_and_a_bad_batch_moves_nothing() -> None:
    interpreted(empty_slots)


def no_underflow(scale: float) -> None:
    """exp(logit - scale) would be 0 in float32."""
    from facescale.kernels.cuda import head
    from facescale.kernels.cuda.operands import Drawn

    unit = functional.normalize(torch.randn(6, 32))
    table = -unit.repeat(20, 1)[:, None] + 0.1 * torch.randn(120, 1, 32)
    none = torch.full((6,), -1)
    logits = nan(0, 6)
    seen = head.forward(Drawn(table, 32, 120), unit, none, scale, "tf32x3", logits)
    truth = scale * functional.normalize(table[:, 0].double()) @ unit.double().T
    assert (seen.log_sum - truth.logsumexp(0)).abs().max() < 1e-6 * scale


def test_the_largest_scale_loses_no_logit() -> None:
    interpreted(no_underflow, 300.0)


def nothing_else() -> None:
    from facescale.kernels.cuda import head
    from facescale.kernels.cuda.operands import Drawn

    unit, table = functional.normalize(torch.randn(3, 16)), torch.randn(1, 2, 16)
    none = torch.zeros(3, dtype=torch.int64)
    seen = head.forward(Drawn(table, 16, 1), unit, none, 64.0, "tf32x3", nan(1, 3))
    assert (seen.log_sum == -torch.inf).all()
    cosine = functional.normalize(table[:, 0]) @ unit.T
    assert (seen.own_cosine - cosine[0]).abs().max() < 1e-6
    empty = head.forward(Drawn(table[:0], 16, 0), unit, none - 1, 64.0, "tf32x3", nan(0, 3))
    assert (empty.log_sum == -torch.inf).all()
    assert (empty.own_cosine == 0).all()
    assert (head.to_batch(Drawn(table[:0], 16, 0), nan(0, 3), "tf32x3") == 0).all()


def test_a_shard_without_other_rows_adds_nothing() -> None:
    interpreted(nothing_else)


def start_values(name: str) -> None:
    """Against Python's functions of float64 and the same bits."""
    import math

    from facescale.kernels.cuda.operands import Drawn
    from facescale.kernels.cuda.start import start_

    dim, index = 48, torch.tensor([5, 2, -1, 0, 7, 8, 9, 10, 11, 12])
    table = make_table(torch.Generator().manual_seed(1), 14, 2, dim, name) * 0
    start_(Drawn(table, dim, len(index), index), KEY, FIRST_CLASS, 0.01)
    rows = index[index >= 0]
    random = (noise(rows, 0, dim) >> 8).double() / 2**24
    radius = (-2 * (random[:, ::2] + 2**-24).log()).sqrt()
    turn = 2 * math.pi * random[:, 1::2]
    truth = 0.01 * torch.stack([radius * turn.cos(), radius * turn.sin()], -1).flatten(1)
    largest = truth.abs().amax(1, keepdim=True)
    unit = {"float32": 2e-6 * largest, "bfloat16": truth.abs() / 256, "int8": largest / 200}[name]
    numbers = decode(table, dim)
    assert ((numbers[rows, 0] - truth).abs() <= unit).all()
    assert (numbers[:, 1] == 0).all()
    others = [row for row in range(14) if row not in rows]
    assert (table[others] == 0).all()


@pytest.mark.parametrize("name", ["float32", "bfloat16", "int8"])
def test_start_values_are_a_function_of_key_class_and_column(name: str) -> None:
    interpreted(start_values, name)
