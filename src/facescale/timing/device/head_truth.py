"""The head's Triton kernels against dense float64 matrices: on a GPU, or in the interpreter.

Fresh tensors of the operators start as NaN, so that a value that no kernel has written shows.
"""

from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional

KEY = (0xDEADBEEF, 0x1234567)
FIRST_CLASS = 77
SCALE, LR, MOMENTUM, DECAY, FACTOR = 64.0, 0.1, 0.9, 5e-4, 0.7
STORED = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.uint8}


def make_table(generator: torch.Generator, rows: int, parts: int, dim: int, name: str) -> Tensor:
    """Random rows (rows, parts, width), stored as `name` says, on the CPU."""
    numbers = torch.randn(rows, parts, dim, generator=generator) * 0.01
    if name != "int8":
        return numbers.to(STORED[name])
    scale = 1.1 * numbers.abs().amax(-1, keepdim=True) / 127
    levels = (numbers / scale).round().to(torch.int8).view(torch.uint8)
    return torch.cat([levels, scale.view(torch.uint8)], -1)


def decode(table: Tensor, dim: int) -> Tensor:
    """The numbers of a table, (rows, parts, dim) float64."""
    if table.dtype != torch.uint8:
        return table.double()
    scale = table[..., dim:].contiguous().view(torch.float32)
    return table[..., :dim].view(torch.int8).double() * scale.double()


def relative(value: Tensor, truth: Tensor) -> float:
    """Length of the error relative to that of the truth; a value that is not finite is refused."""
    if not truth.numel():
        return 0.0
    if not value.isfinite().all():
        raise ArithmeticError("a value is not finite, or was not written")
    return float((value.double() - truth).norm() / truth.norm().clamp_min(1e-300))


class Problem:
    """Inputs of one step, and what it should do in float64."""

    def __init__(
        self,
        name: str,
        parts: int,
        dim: int,
        count: int,
        samples: int,
        gather: bool,
        device: torch.device | str = "cpu",
    ) -> None:
        self.generator = torch.Generator().manual_seed(dim + 31 * count + 7 * samples)
        self.dim = dim
        self.table = make_table(self.generator, 2 * count + 5, parts, dim, name).to(device)
        self.before = self.table.clone()
        order = torch.randperm(len(self.table), generator=self.generator)
        self.rows = (order[:count] if gather else torch.arange(3, 3 + count)).to(device)
        self.index = self.rows if gather else None
        unit = torch.randn(samples, dim, generator=self.generator)
        self.unit = functional.normalize(unit).to(device)
        place = torch.randint(-1, max(count, 1), (samples,), generator=self.generator)
        self.own = torch.where(place < count, place, -1).int().to(device)
        self.to_own = -torch.rand(samples, generator=self.generator).to(device)
        self.truth()

    def truth(self) -> None:
        """The step in dense float64 matrices."""
        before = decode(self.before, self.dim)[self.rows]
        weight, batch = before[:, 0], self.unit.double()
        unit = functional.normalize(weight)
        self.inverse = 1 / weight.norm(dim=1)
        self.logits = SCALE * unit @ batch.T
        own = torch.arange(len(weight), device=self.own.device)[:, None] == self.own
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


def nan(*shape: int, device: torch.device | str = "cpu") -> Tensor:
    """Numbers that show if they are not written."""
    return torch.full(shape, torch.nan, device=device)


def poison() -> Any:
    """Let every fresh tensor of an operator start as NaN."""
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
    device: torch.device | str = "cpu",
) -> dict[str, float]:
    """Relative errors of one step by the kernels.

    Args:
        name: How rows are stored: "float32", "bfloat16", "int8".
        parts: 2 with momentum, 1 without.
        dim: Numbers of a row.
        count: Drawn rows.
        samples: Of the batch.
        gather: Whether rows are drawn at random; else they are consecutive.
        precision: Of products.
        kept: Rows whose logits are kept; all when not given.
        copies: Whether gradients are added up with other copies in between.
        device: A CUDA device; a CPU where Triton interprets kernels.

    Raises:
        ArithmeticError: A value is not finite, two equal calls differ, or another row moved.
    """
    from facescale.kernels.cuda.operands import Drawn

    with poison():
        problem = Problem(name, parts, dim, count, samples, gather, device)
        drawn = Drawn(problem.table, dim, count, problem.index, 0 if gather else 3)
        mode: Any = precision
        errors = _pass_errors(problem, drawn, mode, count if kept is None else kept, copies)
    after = decode(problem.table, dim)
    errors["after"] = relative(after[problem.rows], problem.after)
    errors["moved"] = relative(after[problem.rows, -1], problem.after[:, -1])
    others = torch.ones(len(after), dtype=torch.bool, device=device)
    others[problem.rows] = False
    require_equal(problem.table[others], problem.before[others], "a row that was not drawn")
    return errors


def _pass_errors(
    problem: Problem, drawn: Any, mode: Any, kept: int, copies: bool
) -> dict[str, float]:
    """Errors of both passes, which leave the rows moved."""
    from facescale.kernels.cuda import head
    from facescale.kernels.cuda.operands import Rates

    device, count, samples = problem.unit.device, drawn.count, len(problem.unit)
    batch = problem.unit.bfloat16() if mode == "bf16" else problem.unit
    errors: dict[str, float] = {}
    logits = nan(kept, samples, device=device)
    seen = head.forward(drawn, batch, problem.own, SCALE, mode, logits)
    if kept < count:
        errors["kept logits"] = relative(logits, problem.logits[:kept])
        logits = nan(count, samples, device=device)
        for start, stop in ((0, kept), (kept, count)):
            part = drawn.part(start, stop)
            head.logits_again_(part, batch, SCALE, mode, logits[start:stop])
    errors["logits"] = relative(logits, problem.logits)
    errors["own"] = relative(seen.own_cosine, problem.own_cosine)
    errors["log_sum"] = relative(seen.log_sum, problem.log_sum)
    errors["inverse"] = relative(seen.inverse, problem.inverse) if samples else 0.0
    factor, log_sum = torch.tensor(FACTOR, device=device), problem.log_sum.float()
    radial = head.probability_(
        logits, seen.inverse, log_sum, problem.to_own, problem.own, factor, SCALE
    )
    errors["product"] = relative(logits, problem.product)
    to_batch = head.to_batch(drawn, logits, mode)
    require_equal(to_batch, head.to_batch(drawn, logits, mode), "a sum when it is repeated")
    errors["to_batch"] = relative(to_batch, problem.to_batch)
    rates = Rates(LR, MOMENTUM, DECAY, KEY, FIRST_CLASS)
    bad = torch.zeros(1, dtype=torch.int32, device=device)
    if copies:
        gradient = head.gradient(drawn, logits, batch, radial, mode)
        errors["gradient"] = relative(gradient, problem.gradient)
        require_equal(problem.table, problem.before, "a row before the copies' sum is there")
        head.apply_(drawn, gradient, bad, rates)
    else:
        head.update_(drawn, logits, batch, radial, bad, rates, mode)
    return errors


def require_equal(one: Tensor, other: Tensor, what: str) -> None:
    """Raise ArithmeticError where the two differ."""
    if not torch.equal(one, other):
        raise ArithmeticError(f"{what} has changed")
