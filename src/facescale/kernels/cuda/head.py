"""The head's passes over its drawn rows on a CUDA device: operators on plain tensors."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from facescale.kernels.cuda.backward import probability_kernel, to_batch_kernel
from facescale.kernels.cuda.forward import forward_kernel, join_kernel
from facescale.kernels.cuda.operands import Drawn, Rates
from facescale.kernels.cuda.tiles import SPLITS, Precision, power_of_2, sample_tile, tile_for
from facescale.kernels.cuda.update import apply_kernel, update_kernel


@dataclass(frozen=True)
class Statistics:
    """What the forward pass leaves.

    Attributes:
        log_sum: Log-sum-exp of each sample's logits with other classes; (B,) float64.
        own_cosine: Cosine of each sample and its own class, 0 where that is elsewhere; (B,).
        inverse: 1 / length of each row, 0 for a place that is not in use; (count,).
    """

    log_sum: Tensor
    own_cosine: Tensor
    inverse: Tensor


def forward(
    drawn: Drawn,
    batch: Tensor,
    own_place: Tensor,
    scale: float,
    precision: Precision,
    logits: Tensor,
    limit: float = math.inf,
) -> Statistics:
    """Walk over all rows once.

    Args:
        drawn: The rows.
        batch: Unit embeddings (B, dim), float32; bfloat16 does for precision "bf16".
        own_place: Place of each sample's own class among the rows, -1 where it is not there; (B,)
            int32 or int64.
        scale: Logits are scale * cosine.
        precision: How the product is rounded.
        logits: Filled with the logits of the first rows, own ones included; (rows kept, B) float32.
        limit: Logits of other classes above it count as 0.
    """
    samples = len(batch)
    own_cosine = batch.new_zeros(samples, dtype=torch.float32)
    inverse = batch.new_empty(drawn.count, dtype=torch.float32)
    log_sum = batch.new_full((samples,), -torch.inf, dtype=torch.float64)
    statistics = Statistics(log_sum, own_cosine, inverse)
    if not samples or not drawn.count:
        inverse.fill_(0.0)
        return statistics
    tile = tile_for("forward", precision, batch.device)
    blocks = -(-drawn.count // tile.rows)
    peak, total = own_cosine.new_empty(2, blocks, samples)
    _forward(
        drawn, batch, scale, limit, precision, logits, own_place, inverse, own_cosine, peak, total,
        True,
    )  # fmt: skip
    join_kernel[(-(-samples // 16),)](
        peak, total, log_sum, blocks, samples, P=128, B=16, num_warps=4
    )
    return statistics


def logits_again_(
    drawn: Drawn, batch: Tensor, scale: float, precision: Precision, logits: Tensor
) -> None:
    """Fill `logits` (count, B) for rows whose logits `forward` did not keep."""
    if logits.numel():
        none = (logits,) * 5
        _forward(drawn, batch, scale, math.inf, precision, logits, *none, False)


def _forward(
    drawn: Drawn,
    batch: Tensor,
    scale: float,
    limit: float,
    precision: Precision,
    logits: Tensor,
    own_place: Tensor,
    inverse: Tensor,
    own_cosine: Tensor,
    peak: Tensor,
    total: Tensor,
    statistics: bool,
) -> None:
    tile, samples = tile_for("forward", precision, batch.device), len(batch)
    width = sample_tile(samples, tile.samples)
    grid = -(-drawn.count // tile.rows) * -(-samples // width)
    table, scales, rows = drawn.pointers()
    forward_kernel[(grid,)](
        table, scales, rows, batch, own_place, inverse, logits, own_cosine, peak, total,
        drawn.first, drawn.count, len(logits), samples, scale, limit,
        **drawn.constants(), STATISTICS=statistics, PRECISION=precision,
        R=tile.rows, B=width, BD=min(tile.columns, power_of_2(drawn.dim)),
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip


def probability_(
    logits: Tensor,
    inverse: Tensor,
    log_sum: Tensor,
    to_own: Tensor,
    own_place: Tensor,
    factor: Tensor,
    scale: float,
    first_place: int = 0,
    limit: float = math.inf,
) -> Tensor:
    """Turn logits (k, B) of rows into the gradients of the products weight @ batch.T, in place.

    Args:
        logits: As `forward` left them.
        inverse: 1 / length of these rows, 0 for a place that is not in use; (k,).
        log_sum: Of all logits of each sample, its own after the margin included; (B,).
        to_own: Gradient of each sample's own cosine / scale; (B,).
        own_place: As in `forward`.
        factor: Gradient of a cosine / that of its logit in the loss of one sample; ().
        scale: As in `forward`.
        first_place: Place of these rows' first one among all.
        limit: As in `forward`; what is above it gets no gradient.

    Returns:
        How much of each row its own gradient takes back so as not to lengthen it; (k,).
    """
    count, samples = logits.shape
    radial = torch.zeros_like(inverse)
    if logits.numel():
        tile = tile_for("probability", "tf32", logits.device)
        probability_kernel[(-(-count // tile.rows),)](
            logits, inverse, log_sum, to_own, own_place, factor, radial,
            first_place, count, samples, scale, limit,
            R=tile.rows, B=sample_tile(samples, tile.samples), num_warps=tile.warps,
        )  # fmt: skip
    return radial


def to_batch(drawn: Drawn, product: Tensor, precision: Precision) -> Tensor:
    """product.T @ weight, (B, dim): equal to the bit from call to call.

    Rows are split, and the sums of all splits added up in one order.
    """
    count, samples = product.shape
    if not product.numel():
        return product.new_zeros(samples, drawn.dim)
    tile = tile_for("to_batch", precision, product.device)
    width, columns = sample_tile(samples, tile.samples), min(tile.columns, power_of_2(drawn.dim))
    split_rows = -(-count // (SPLITS * tile.rows)) * tile.rows
    splits = -(-count // split_rows)
    parts = product.new_empty(splits, samples, drawn.dim)
    table, scales, rows = drawn.pointers()
    grid = splits * -(-samples // width) * -(-drawn.dim // columns)
    to_batch_kernel[(grid,)](
        table, scales, rows, product, parts, drawn.first, count, samples, split_rows,
        **drawn.constants(), PRECISION=precision, R=tile.rows, B=width, BD=columns,
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return parts.sum(0)


def update_(
    drawn: Drawn,
    product: Tensor,
    batch: Tensor,
    radial: Tensor,
    bad: Tensor,
    rates: Rates,
    precision: Precision,
) -> None:
    """Move the rows by one step of torch.optim.SGD's rule, in place.

    Args:
        drawn: The rows.
        product: As `probability_` leaves it; (count, B).
        batch: As in `forward`.
        radial: As `probability_` returns it; (count,).
        bad: Not 0: nothing moves; (1,) int32 on the device.
        rates: SGD's numbers.
        precision: How the product is rounded.
    """
    _update(drawn, product, batch, radial, bad, radial, rates, precision, learn=True)


def gradient(
    drawn: Drawn, product: Tensor, batch: Tensor, radial: Tensor, precision: Precision
) -> Tensor:
    """Gradient of the rows without weight decay, (count, dim): copies of a shard add theirs up."""
    out = product.new_empty(drawn.count, drawn.dim)
    _update(
        drawn, product, batch, radial, radial, out, Rates(0.0, 0.0, 0.0), precision, learn=False
    )
    return out


def _update(
    drawn: Drawn,
    product: Tensor,
    batch: Tensor,
    radial: Tensor,
    bad: Tensor,
    out: Tensor,
    rates: Rates,
    precision: Precision,
    learn: bool,
) -> None:
    if not drawn.count:
        return
    whole = learn and drawn.table.dtype == torch.uint8
    tile = tile_for("update int8" if whole else "update", precision, batch.device)
    samples = len(batch)
    columns = power_of_2(drawn.dim)
    columns = columns if whole else min(tile.columns, columns)
    table, scales, rows = drawn.pointers()
    grid = -(-drawn.count // tile.rows) * -(-drawn.dim // columns)
    update_kernel[(grid,)](
        table, scales, rows, product, batch, radial, bad, out, drawn.first, drawn.count, samples,
        *rates.arguments(),
        **drawn.constants(), LEARN=learn, PRECISION=precision, R=tile.rows,
        B=sample_tile(samples, tile.samples), BD=columns,
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip


def apply_(drawn: Drawn, total: Tensor, bad: Tensor, rates: Rates) -> None:
    """Move the rows by a gradient (count, dim) that `gradient` began; `bad` as in `update_`."""
    if not drawn.count:
        return
    whole = drawn.table.dtype == torch.uint8
    tile = tile_for("apply int8" if whole else "apply", "tf32", total.device)
    columns = power_of_2(drawn.dim)
    columns = columns if whole else min(tile.columns, columns)
    table, scales, rows = drawn.pointers()
    grid = -(-drawn.count // tile.rows) * -(-drawn.dim // columns)
    apply_kernel[(grid,)](
        table, scales, rows, bad, total, drawn.first, drawn.count,
        *rates.arguments(),
        **drawn.constants(), R=tile.rows, BD=columns, num_warps=tile.warps,
    )  # fmt: skip
