"""Which rows of a shard join the softmax of a step: all that are needed, and a uniform rest."""

import math

import torch
from torch import Tensor


def draw_rows(
    num_rows: int, positives: Tensor, num_sample: int, generator: torch.Generator
) -> Tensor:
    """Draw `num_sample` different rows out of `num_rows`, `positives` always among them.

    The rest is uniform without replacement over the other rows; the work is O(num_sample), not
    O(num_rows). Where the positives outnumber `num_sample`, they are the sample.

    Args:
        num_rows: Rows of this shard.
        positives: Rows that some sample of the global batch belongs to; (p,), sorted, unique.
        num_sample: How many rows to return.
        generator: Decides the draw; its device is that of `positives`.

    Returns:
        (max(num_sample, p),) sorted rows. Source: An et al., Partial FC, CVPR 2022, section 3.2.
    """
    num_negatives = min(num_sample, num_rows) - len(positives)
    if num_negatives <= 0:
        return positives
    negatives = _draw_distinct(num_rows - len(positives), num_negatives, generator)
    # The k-th row that is not a positive: skip the positives below it.
    skipped = positives - torch.arange(len(positives), device=positives.device)
    negatives += torch.searchsorted(skipped, negatives, right=True)
    return torch.cat([positives, negatives]).sort().values


def _draw_distinct(stop: int, count: int, generator: torch.Generator) -> Tensor:
    """A uniform `count`-subset of range(stop), in no particular order."""
    device = generator.device
    if 3 * count > stop:
        return torch.randperm(stop, generator=generator, device=device)[:count]
    # As many draws as hold `count` different values on average, and six deviations more.
    num_draws = int(-stop * math.log1p(-count / stop) + 6 * count**0.5 + 16)
    values = torch.randint(stop, (num_draws,), generator=generator, device=device).sort().values
    is_first = torch.ones_like(values, dtype=torch.bool)
    is_first[1:] = values[1:] != values[:-1]
    values = values[is_first]
    assert len(values) >= count  # misses with probability below 1e-6 even at count = 1
    # Whichever number of values came, each set of that size is as likely: leave out any.
    stays = torch.ones_like(values, dtype=torch.bool)
    order = torch.randperm(len(values), generator=generator, device=device)
    stays[order[count:]] = False
    return values[stays]
