"""The head alone: forward, backward and the update of the drawn class centres."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from facescale.timing.baselines import DenseHead, OwnHead, SampledHead
from facescale.timing.interleave import Case, Contender, Prepare

BLOCK_ROWS = 1024  # of the probe's product on a CPU: a tall block times a narrow batch


def head(
    identities: int,
    rate: float = 1.0,
    batch: int = 64,
    dim: int = 512,
    *,
    name: str = "head",
    device: str = "cpu",
) -> Case:
    """`batch` random embeddings against a sample of the class centres, float32."""
    rows = int(identities * rate)

    def contender(title: str, kind: Callable[..., Any], copies: float) -> Contender:
        memory = 4.0 * dim * (copies * identities + 6 * rows)
        build = partial(build_head, kind, identities, rate, batch, dim, device)
        return Contender(title, build, memory)

    return Case(
        name=name,
        title=f"head, {identities:,} identities, rate {rate:g}, batch {batch}",
        contenders=(
            contender("facescale", OwnHead, 2.0).tuned(),
            *contender("dense", DenseHead, 3.5).both(device),
            *contender("sampled", SampledHead, 2.0).both(device),
        ),
        samples=batch,
        # three products with the drawn rows: logits, and both gradients
        flop=3 * 2.0 * rows * dim * batch,
        # minimum for float32 rows: weight read twice, momentum once, both written once
        traffic=5 * 4.0 * rows * dim,
        probe=(BLOCK_ROWS if device == "cpu" else rows, dim, batch),
        device=device,
    )


def build_head(
    kind: Callable[..., Any],
    identities: int,
    rate: float,
    batch: int,
    dim: int,
    device: str,
    **options: Any,
) -> Prepare:
    """A head of that kind, and random embeddings and labels for each of its steps."""
    contender = kind(identities, dim, rate, device, **options)
    random = torch.Generator(device).manual_seed(1)

    def prepare() -> Callable[[], object]:
        embeddings = torch.randn(batch, dim, generator=random, device=device).requires_grad_()
        labels = torch.randint(identities, (batch,), generator=random, device=device)
        return partial(contender.step, embeddings, labels)

    return prepare
