"""Ranks, shards, sample rates and uneven batches never change what the head computes."""

from typing import Any

import pytest
import torch
from torch import Tensor

import facescale
from conftest import RunRanks
from facescale.head import AdaFace, MagFace, TargetMargin
from reference import DenseMargin, dense_adaface, dense_combined, dense_magface, dense_step

MARGIN = (1.1, 0.3, 0.2)
ADAFACE = {"m": 0.4, "h": 0.6, "t_alpha": 0.5}
# Norms of embeddings here are 2 to 6, so that some lie beyond each end
MAGFACE = {"l_a": 2.5, "u_a": 4.5, "l_margin": 0.3, "u_margin": 0.9}
SETTINGS: dict[str, Any] = {"scale": 16.0, "momentum": 0.9, "weight_decay": 5e-4}
CLASSES, DIM, STEPS, LR = 37, 12, 3, 0.5
DIVISORS = {1: [1], 2: [1, 2], 4: [1, 2, 4]}


def make_batch(step: int, sizes: list[int]) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(step)
    embeddings = torch.randn(sum(sizes), DIM, generator=random, dtype=torch.float64)
    return embeddings, torch.randint(CLASSES, (sum(sizes),), generator=random)


def make_margin(name: str) -> TargetMargin:
    if name == "adaface":
        return AdaFace(**ADAFACE)
    return MagFace(**MAGFACE, lambda_g=3.0) if name == "magface" else facescale.combined(*MARGIN)


def train_head(
    rank: int,
    sizes: list[int],
    shards: int,
    rate: float,
    dtype: torch.dtype = torch.float64,
    margin: str = "combined",
    joint_samples: int = 0,
) -> dict[str, Any]:
    """Three steps of the head on this rank's part of each batch."""
    head = facescale.MarginHead(
        num_classes=CLASSES,
        embedding_dim=DIM,
        margin=make_margin(margin),
        sample_rate=rate,
        shards=shards,
        dtype=dtype,
        joint_samples=joint_samples,
        **SETTINGS,
    )
    first = sum(sizes[:rank])
    seen: dict[str, Any] = {"centres": [head.centres.full()], "losses": [], "gradients": []}
    for step in range(STEPS):
        embeddings, labels = (part[first : first + sizes[rank]] for part in make_batch(step, sizes))
        numbers = dtype if dtype.is_floating_point else torch.float32
        embeddings = embeddings.to(numbers, copy=True).requires_grad_()
        loss = head(embeddings, labels, lr=LR)
        loss.backward()
        seen["losses"].append(loss.detach())
        seen["gradients"].append(embeddings.grad)
        seen["centres"].append(head.centres.full())
    return seen


def all_cases(
    rank: int, sizes: list[int], dtype: torch.dtype, margin: str = "combined"
) -> dict[tuple[int, float, int], dict[str, Any]]:
    return {
        (shards, rate, joint): train_head(rank, sizes, shards, rate, dtype, margin, joint)
        for shards in DIVISORS[len(sizes)]
        for rate in (1.0, 0.3)
        # Copies sum gradients, or always compute jointly, or in some groups only
        for joint in ([0, 100, 6] if shards < len(sizes) else [0])
    }


class Truth:
    """The dense margin of each step, after the norms of its whole batch."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.mean, self.std = torch.tensor(20.0).double(), torch.tensor(100.0).double()

    def margin(self, norms: Tensor) -> DenseMargin:
        if self.name == "combined":
            return dense_combined(*MARGIN)
        if self.name == "magface":
            return dense_magface(**MAGFACE)
        new = ADAFACE["t_alpha"]
        self.mean = (1 - new) * self.mean + new * norms.mean()
        self.std = (1 - new) * self.std + new * norms.std()
        return dense_adaface(self.mean, self.std, ADAFACE["m"], ADAFACE["h"])

    def penalty(self, norms: Tensor) -> Tensor:
        clipped = norms.clip(MAGFACE["l_a"], MAGFACE["u_a"])
        return (self.name == "magface") * 3.0 * (clipped / MAGFACE["u_a"] ** 2 + 1 / clipped)


def compare_with_truth(
    ranks: list[dict[str, Any]], sizes: list[int], rate: float, atol: float, name: str = "combined"
) -> None:
    truth = Truth(name)
    centres = [seen.double() for seen in ranks[0]["centres"]]
    weight, velocity = centres[0], torch.zeros_like(centres[0])
    for step in range(STEPS):
        embeddings, labels = make_batch(step, sizes)
        moved = (centres[step + 1] != centres[step]).any(dim=1)
        rows = moved.nonzero().flatten().tolist()
        assert set(labels.tolist()) <= set(rows)
        assert len(rows) < CLASSES if rate < 1 else len(rows) == CLASSES
        loss, gradient, weight, velocity = dense_step(
            embeddings,
            labels,
            weight,
            velocity,
            rows,
            margin=truth.margin(embeddings.norm(dim=1)),
            penalty=truth.penalty,
            lr=LR,
            **SETTINGS,
        )
        answers = [
            (sum(rank["losses"][step].double() for rank in ranks), loss),
            (torch.cat([rank["gradients"][step] for rank in ranks]), gradient),
            *((rank["centres"][step + 1], weight) for rank in ranks),
        ]
        for ours, exact in answers:
            torch.testing.assert_close(
                ours.double(), exact, rtol=0, atol=atol * exact.abs().max().item()
            )


@pytest.mark.parametrize(
    "sizes",
    [
        *([9], [7, 2], [0, 3, 0, 4]),
        *(pytest.param(s, marks=pytest.mark.slow) for s in ([5, 5], [4, 4, 4, 4], [1, 6, 3, 5])),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    ("dtype", "atol"),
    # float64 in torch's operations; float32 in the default walk, whose rounding three steps add up
    [(torch.float64, 1e-9), (torch.float32, 5e-6)],
    ids=str,
)
def test_every_split_takes_the_dense_step(
    run_ranks: RunRanks, sizes: list[int], dtype: torch.dtype, atol: float
) -> None:
    answers = run_ranks(all_cases, len(sizes), sizes, dtype)
    for case in answers[0]:
        compare_with_truth([answer[case] for answer in answers], sizes, case[1], atol)


@pytest.mark.parametrize("sizes", [[9], [7, 2], [1, 6, 0, 5]], ids=str)
@pytest.mark.parametrize("margin", ["adaface", "magface"])
def test_margins_of_the_norm_take_the_dense_step(
    run_ranks: RunRanks, margin: str, sizes: list[int]
) -> None:
    answers = run_ranks(all_cases, len(sizes), sizes, torch.float64, margin)
    for case in answers[0]:
        compare_with_truth([answer[case] for answer in answers], sizes, case[1], 1e-9, margin)


def rows_that_stay(rank: int) -> bool:
    head = facescale.MarginHead(CLASSES, DIM, sample_rate=0.1)
    head.centres.start_()
    before = head.centres.table.clone()
    embeddings, labels = make_batch(0, [3, 3])
    head(
        embeddings[3 * rank :][:3].float().requires_grad_(), labels[3 * rank :][:3], 0.1
    ).backward()
    same = (head.centres.table == before).flatten(1).all(dim=1)
    return bool(same.any()) and not bool(same.all())


def test_rows_that_were_not_drawn_do_not_move_by_a_bit(run_ranks: RunRanks) -> None:
    assert all(run_ranks(rows_that_stay, 2))


def copies_agree(rank: int) -> list[Tensor]:
    return [
        train_head(rank, [3, 2, 4, 1], 2, 0.3, dtype, joint_samples=joint)["centres"][-1]
        for dtype in (torch.float64, torch.float32, torch.int8)
        for joint in (0, 100)
    ]


def test_copies_of_a_shard_stay_equal_to_the_bit(run_ranks: RunRanks) -> None:
    first, *others = run_ranks(copies_agree, 4)
    for other in others:
        assert all(map(torch.equal, first, other))


def more_ranks_than_classes(rank: int) -> tuple[float, Tensor]:
    head = facescale.MarginHead(5, DIM, dtype=torch.float64, **SETTINGS)
    embeddings, labels = make_batch(0, [2, 2, 2, 2])
    mine = slice(2 * rank, 2 * rank + 2)
    loss = head(embeddings[mine].requires_grad_(), labels[mine] % 5, 0.1)
    loss.backward()
    return loss.item(), head.centres.full()


def test_a_shard_without_classes_is_as_good_as_any(run_ranks: RunRanks) -> None:
    alone = facescale.MarginHead(5, DIM, dtype=torch.float64, **SETTINGS)
    embeddings, labels = make_batch(0, [2, 2, 2, 2])
    loss = alone(embeddings.requires_grad_(), labels % 5, 0.1)
    loss.backward()
    answers = run_ranks(more_ranks_than_classes, 4)
    assert sum(loss for loss, _ in answers) == pytest.approx(loss.item(), abs=1e-12)
    for _, centres in answers:
        torch.testing.assert_close(centres, alone.centres.full(), rtol=0, atol=1e-12)


def batch_with_nan(rank: int) -> tuple[bool, bool, bool]:
    head = facescale.MarginHead(CLASSES, DIM, shards=1)
    before = head.centres.table.clone()
    embeddings = torch.randn(2, DIM)
    embeddings[0, 0] = torch.nan if rank == 1 else 1.0
    embeddings.requires_grad_()
    loss = head(embeddings, torch.tensor([0, 1]), 0.1)
    loss.backward()
    assert embeddings.grad is not None
    still = torch.equal(before, head.centres.table)
    return bool(loss.isnan()), bool(embeddings.grad.isnan().any()), still


def test_one_rank_with_nan_stops_the_step_of_all(run_ranks: RunRanks) -> None:
    assert run_ranks(batch_with_nan, 2) == [(True, True, True)] * 2


def bad_label(rank: int) -> str:
    head = facescale.MarginHead(CLASSES, DIM)
    with pytest.raises(ValueError, match="label 40 but num_classes is 37") as error:
        head(torch.randn(2, DIM), torch.tensor([0, 40 if rank == 1 else 1]), 0.1)
    return str(error.value)


def test_a_label_outside_is_one_error_on_every_rank(run_ranks: RunRanks) -> None:
    first, second = run_ranks(bad_label, 2)
    assert first == second


def bad_shards(rank: int) -> None:
    with pytest.raises(ValueError, match=r"head.shards is 3.*choose one of \[1, 2\]"):
        facescale.MarginHead(CLASSES, DIM, shards=3)


def test_shards_must_divide_the_world(run_ranks: RunRanks) -> None:
    run_ranks(bad_shards, 2)
