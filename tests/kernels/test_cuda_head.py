"""The head's Triton kernels, interpreted on the CPU, against the dense float64 truth.

What the interpreter does not show is in `test_cuda_compile.py`: rounding of tf32, races, registers.
"""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from triton_process import interpreted, needs_triton

pytestmark = needs_triton

SCALE, LR, MOMENTUM, DECAY, FACTOR = 64.0, 0.1, 0.9, 5e-4, 0.7
STORED = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.uint8}


def make_table(generator: torch.Generator, rows: int, parts: int, dim: int, name: str) -> Tensor:
    numbers = torch.randn(rows, parts, dim, generator=generator) * 0.01
    if name != "int8":
        return numbers.to(STORED[name])
    scale = 1.1 * numbers.abs().amax(-1, keepdim=True) / 127
    levels = (numbers / scale).round().to(torch.int8).view(torch.uint8)
    return torch.cat([levels, scale.view(torch.uint8)], -1)


def decode(table: Tensor, dim: int) -> Tensor:
    if table.dtype != torch.uint8:
        return table.double()
    scale = table[..., dim:].contiguous().view(torch.float32)
    return table[..., :dim].view(torch.int8).double() * scale.double()


def relative(value: Tensor, truth: Tensor) -> float:
    if not truth.numel():
        return 0.0
    assert value.isfinite().all()
    return float((value.double() - truth).norm() / truth.norm().clamp_min(1e-300))


class Problem:
    """Inputs of one step, and what it should do in float64."""

    def __init__(
        self, name: str, parts: int, dim: int, count: int, samples: int, gather: bool
    ) -> None:
        self.generator = torch.Generator().manual_seed(dim + 31 * count + 7 * samples)
        self.dim = dim
        self.table = make_table(self.generator, 2 * count + 5, parts, dim, name)
        self.before = self.table.clone()
        order = torch.randperm(len(self.table), generator=self.generator)
        self.index = order[:count] if gather else None
        self.rows = order[:count] if gather else torch.arange(3, 3 + count)
        self.unit = functional.normalize(torch.randn(samples, dim, generator=self.generator))
        place = torch.randint(-1, max(count, 1), (samples,), generator=self.generator)
        self.own = torch.where(place < count, place, -1).int()
        self.to_own = -torch.rand(samples, generator=self.generator)
        self.truth()

    def truth(self) -> None:
        """The step in dense float64 matrices."""
        before = decode(self.before, self.dim)[self.rows]
        weight, batch = before[:, 0], self.unit.double()
        unit = functional.normalize(weight)
        self.inverse = 1 / weight.norm(dim=1)
        self.logits = SCALE * unit @ batch.T
        own = torch.arange(len(weight))[:, None] == self.own
        self.own_cosine = (self.logits * own).sum(0) / SCALE
        self.log_sum = self.logits.masked_fill(own, -torch.inf).logsumexp(0)
        to_cosine = torch.where(own, self.to_own.double(), (self.logits - self.log_sum).exp())
        to_cosine = to_cosine * FACTOR
        self.product = to_cosine * self.inverse[:, None]
        self.to_batch = self.product.T @ weight
        to_unit = to_cosine @ batch
        along = (to_unit * unit).sum(1, keepdim=True) * unit
        self.gradient = (to_unit - along) * self.inverse[:, None]
        velocity = self.gradient + DECAY * weight
        if before.shape[1] == 2:
            velocity = velocity + MOMENTUM * before[:, 1]
        self.after = torch.stack([weight - LR * velocity, velocity], 1)[:, : before.shape[1]]


def nan(*shape: int) -> Tensor:
    return torch.full(shape, torch.nan)


def poison() -> Any:
    """Lets every fresh tensor of a wrapper start as NaN."""
    from unittest import mock

    empty = torch.Tensor.new_empty

    def new_empty(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        fresh = empty(self, *args, **kwargs)
        return fresh.fill_(torch.nan) if fresh.is_floating_point() else fresh

    return mock.patch.object(torch.Tensor, "new_empty", new_empty)


def step_errors(
    name: str,
    parts: int,
    dim: int,
    count: int,
    samples: int,
    gather: bool,
    precision: str,
    kept: int | None = None,
    copies: bool = False,
) -> dict[str, float]:
    """Relative errors of one step by the kernels; runs where they are interpreted."""
    from facescale.kernels.cuda import head

    with poison():
        problem = Problem(name, parts, dim, count, samples, gather)
        batch = problem.unit.bfloat16() if precision == "bf16" else problem.unit
        drawn = head.Drawn(problem.table, dim, count, problem.index, 0 if gather else 3)
        kept = count if kept is None else kept
        logits = nan(kept, samples)
        mode: Any = precision
        seen = head.forward(drawn, batch, problem.own, SCALE, mode, logits)
        if kept < count:
            assert relative(logits, problem.logits[:kept]) < 1e-5
            logits = nan(count, samples)
            for start, stop in ((0, kept), (kept, count)):
                part = logits[start:stop]
                head.logits_again_(drawn.part(start, stop), batch, SCALE, mode, part)
        errors = {
            "logits": relative(logits, problem.logits),
            "own": relative(seen.own_cosine, problem.own_cosine),
            "log_sum": float((seen.log_sum - problem.log_sum).abs().max()) if samples else 0.0,
            "inverse": relative(seen.inverse, problem.inverse) if samples else 0.0,
        }
        factor, bad = torch.tensor(FACTOR), torch.zeros(1, dtype=torch.int32)
        log_sum = problem.log_sum.float()
        radial = head.probability_(
            logits, seen.inverse, log_sum, problem.to_own, problem.own, factor, SCALE
        )
        errors["product"] = relative(logits, problem.product)
        to_batch = head.to_batch(drawn, logits, mode)
        assert torch.equal(to_batch, head.to_batch(drawn, logits, mode))
        errors["to_batch"] = relative(to_batch, problem.to_batch)
        rates = head.Rates(LR, MOMENTUM, DECAY, key=0xDEADBEEF, first_class=77)
        if copies:
            gradient = head.gradient(drawn, logits, batch, radial, mode)
            errors["gradient"] = relative(gradient, problem.gradient)
            assert torch.equal(problem.table, problem.before)
            head.apply_(drawn, gradient, bad, rates)
        else:
            head.update_(drawn, logits, batch, radial, bad, rates, mode)
    after = decode(problem.table, dim)
    errors["after"] = relative(after[problem.rows], problem.after)
    errors["moved"] = relative(after[problem.rows, -1], problem.after[:, -1])
    others = torch.ones(len(after), dtype=torch.bool)
    others[problem.rows] = False
    assert torch.equal(problem.table[others], problem.before[others])
    return errors


SIZES = [(16, 37, 5), (64, 300, 33), (80, 131, 17), (512, 70, 20)]
"""dim, rows, samples: no tile divides them."""


@pytest.mark.parametrize(("dim", "count", "samples"), SIZES)
@pytest.mark.parametrize("gather", [True, False])
def test_a_step_is_that_of_dense_matrices(dim: int, count: int, samples: int, gather: bool) -> None:
    errors = interpreted(step_errors, "float32", 2, dim, count, samples, gather, "tf32x3")
    assert max(errors.values()) < 1e-5, errors


if __name__ == "__main__":
    import time
    from triton_process import mend_interpreter; mend_interpreter()
    for args in [("float32",2,64,300,33,True,"tf32x3"),("float32",1,16,37,5,False,"tf32x3"),("float32",2,512,70,20,True,"tf32x3"),("float32",2,80,131,0,True,"tf32x3"),("bfloat16",2,80,131,17,True,"tf32x3"),("int8",2,80,131,17,True,"bf16"),("float32",2,80,131,17,True,"bf16"),("float32",2,80,331,170,True,"tf32",128,True)]:
        t=time.time()
        print(args, {k:f"{v:.1e}" for k,v in step_errors(*args).items()}, f"{time.time()-t:.1f}")
