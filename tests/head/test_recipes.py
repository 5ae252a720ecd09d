"""Sub-centres, CurricularFace, the filter and AdamW take the dense float64 step in every split."""

from typing import Any

import pytest
import torch
from torch import Tensor

import facescale
from conftest import RunRanks
from facescale.head import CurricularFace, walks
from facescale.head.walks.blocks import BlockWalk
from reference import (
    dense_combined,
    dense_cosines,
    dense_curricular,
    dense_filter,
    dense_loss,
    dense_step,
)

CLASSES, DIM, STEPS, LR, SCALE = 23, 8, 3, 0.5, 16.0
SIZES = [[9], [7, 2], [1, 6, 0, 5]]
RATES: dict[str, Any] = {"momentum": 0.9, "weight_decay": 5e-4}
CURRICULAR = {"m": 0.5, "t_alpha": 0.3}
KINDS: dict[str, dict[str, Any]] = {
    "subcentres": {"subcentres": 3},
    "curricular": {"margin": CURRICULAR},
    "curricular, subcentres": {"margin": CURRICULAR, "subcentres": 2},
    "filter": {"interclass_filter": 0.3},
}


def make_batch(step: int, sizes: list[int]) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(step)
    embeddings = torch.randn(sum(sizes), DIM, generator=random, dtype=torch.float64)
    return embeddings, torch.randint(CLASSES, (sum(sizes),), generator=random)


def make_head(kind: dict[str, Any], **more: Any) -> facescale.MarginHead:
    chosen = kind | more
    curricular = chosen.pop("margin", None)
    margin = facescale.arcface(0.3) if curricular is None else CurricularFace(**curricular)
    return facescale.MarginHead(
        CLASSES, DIM, margin, SCALE, dtype=torch.float64, seed=5, **RATES, **chosen
    )


def train_head(
    rank: int, sizes: list[int], shards: int, rate: float, kind: dict[str, Any]
) -> dict[str, Any]:
    """Three steps of the head on this rank's part of each batch."""
    head = make_head(kind, sample_rate=rate, shards=shards)
    first = sum(sizes[:rank])
    seen: dict[str, Any] = {"centres": [head.centres.full()], "losses": [], "gradients": []}
    for step in range(STEPS):
        embeddings, labels = (part[first : first + sizes[rank]] for part in make_batch(step, sizes))
        embeddings = embeddings.clone().requires_grad_()
        loss = head(embeddings, labels, lr=LR)
        loss.backward()
        seen["losses"].append(loss.detach())
        seen["gradients"].append(embeddings.grad)
        seen["centres"].append(head.centres.full())
    seen["t"] = head.state_dict().get("margin.t")
    return seen


def all_cases(
    rank: int, sizes: list[int], kind: dict[str, Any]
) -> dict[tuple[int, float], dict[str, Any]]:
    return {
        (shards, rate): train_head(rank, sizes, shards, rate, kind)
        for shards in (1, 2, 4)
        if len(sizes) % shards == 0
        for rate in (1.0, 0.3)
    }


def classes_that_moved(before: Tensor, after: Tensor, subcentres: int) -> list[int]:
    moved: list[int] = (
        (before != after).reshape(CLASSES, -1).any(dim=1).nonzero().flatten().tolist()
    )
    rows = (before != after).any(dim=1).reshape(CLASSES, subcentres)
    assert (rows.all(dim=1) == rows.any(dim=1)).all()  # a class is drawn with all its centres
    return moved


def compare(
    ranks: list[dict[str, Any]], sizes: list[int], rate: float, kind: dict[str, Any]
) -> None:
    subcentres, t = kind.get("subcentres", 1), torch.zeros(()).double()
    margin, others = dense_combined(1.0, 0.3, 0.0), None
    if "interclass_filter" in kind:
        others = dense_filter(kind["interclass_filter"])
    weight = ranks[0]["centres"][0]
    velocity = torch.zeros_like(weight)
    for step in range(STEPS):
        embeddings, labels = make_batch(step, sizes)
        before, after = ranks[0]["centres"][step : step + 2]
        classes = classes_that_moved(before, after, subcentres)
        assert set(labels.tolist()) <= set(classes)
        assert len(classes) < CLASSES if rate < 1 else len(classes) == CLASSES
        if "margin" in kind:
            own = dense_cosines(embeddings, weight, subcentres)[range(len(labels)), labels]
            t = (1 - CURRICULAR["t_alpha"]) * t + CURRICULAR["t_alpha"] * own.mean()
            margin, others = dense_curricular(t, CURRICULAR["m"])
        loss, gradient, weight, velocity = dense_step(
            *(embeddings, labels, weight, velocity, classes),
            **(RATES | {"margin": margin, "others": others, "subcentres": subcentres}),
            scale=SCALE,
            lr=LR,
        )
        answers = [
            (sum(rank["losses"][step] for rank in ranks), loss),
            (torch.cat([rank["gradients"][step] for rank in ranks]), gradient),
            *((rank["centres"][step + 1], weight) for rank in ranks),
            *((rank["t"], t) for rank in ranks if "margin" in kind and step == STEPS - 1),
        ]
        for ours, exact in answers:
            tolerance = 1e-9 * exact.abs().max().item()
            torch.testing.assert_close(ours, exact, rtol=0, atol=tolerance)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_every_split_takes_the_dense_step(run_ranks: RunRanks, sizes: list[int], kind: str) -> None:
    answers = run_ranks(all_cases, len(sizes), sizes, KINDS[kind])
    for shards, rate in answers[0]:
        compare([answer[shards, rate] for answer in answers], sizes, rate, KINDS[kind])


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_adamw_of_the_centres_is_torchs_on_the_rows_that_are_drawn(
    run_ranks: RunRanks, sizes: list[int]
) -> None:
    kind = {"optimizer": "adamw"}
    answers = run_ranks(all_cases, len(sizes), sizes, kind)
    for (_, rate), ranks in ((case, [answer[case] for answer in answers]) for case in answers[0]):
        weights = list(ranks[0]["centres"][0].clone())
        rows = [weight.requires_grad_() for weight in weights]
        # An optimizer a row: torch's own bias correction by the draws of that row
        optimizers = [
            torch.optim.AdamW([row], lr=LR, weight_decay=RATES["weight_decay"]) for row in rows
        ]
        for step in range(STEPS):
            embeddings, labels = make_batch(step, sizes)
            before, after = ranks[0]["centres"][step : step + 2]
            drawn = classes_that_moved(before, after, 1)
            assert len(drawn) < CLASSES if rate < 1 else len(drawn) == CLASSES
            margin = dense_combined(1.0, 0.3, 0.0)
            dense_loss(embeddings, labels, torch.stack(rows), margin, SCALE, drawn).backward()
            for index in range(CLASSES):
                if index in drawn:
                    optimizers[index].step()
                rows[index].grad = None
            truth = torch.stack(rows).detach()
            for rank in ranks:
                # eps is added to roots of squares of tiny numbers
                torch.testing.assert_close(rank["centres"][step + 1], truth, rtol=0, atol=1e-7)


def test_what_does_not_fit_in_memory_is_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("facescale.head.walks.blocks.BLOCK_ROWS", {"cpu": 8})
    kind = {"margin": CURRICULAR, "subcentres": 2}
    kept, again = (
        train_head(0, [9], 1, 0.5, kind | {"logits_budget": budget}) for budget in (1 << 20, 0)
    )
    for one, other in zip(kept["centres"], again["centres"], strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


BLOCKS = {name: kind for name, kind in KINDS.items() if name != "filter"}


@pytest.mark.parametrize("kind", [*BLOCKS.values(), {"optimizer": "adamw"}], ids=[*BLOCKS, "adamw"])
def test_only_the_block_walk_serves_such_steps(
    kind: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    original = BlockWalk.__init__

    def noted(self: BlockWalk, step: Any) -> None:
        seen.append([walk.__name__ for walk in walks.WALKS if walk.serves(step)])
        original(self, step)

    monkeypatch.setattr(BlockWalk, "__init__", noted)
    chosen = dict(kind)
    margin = CurricularFace() if chosen.pop("margin", None) else None
    head = facescale.MarginHead(CLASSES, DIM, margin, **chosen)
    head(torch.randn(3, DIM).requires_grad_(), torch.arange(3), lr=0.1).backward()
    assert seen == [["BlockWalk"]]


def test_the_filter_and_subcentres_are_checked() -> None:
    for kind, message in (
        ({"subcentres": 0}, r"subcentres must be in \[1, 255\], got 0"),
        ({"interclass_filter": 1.5}, r"interclass_filter must be in \(0, 1\], got 1.5"),
        ({"optimizer": "lamb"}, "optimizer must be one of sgd, adamw, got 'lamb'"),
        ({"optimizer": "adamw", "dtype": torch.int8}, "take float32 or bfloat16"),
    ):
        with pytest.raises(ValueError, match=message):
            facescale.MarginHead(10, 4, **kind)


def test_t_stays_in_eval_mode_and_where_a_centre_is_no_number() -> None:
    margin = CurricularFace(t_alpha=0.5)
    head = facescale.MarginHead(10, 4, margin)
    head.eval()(torch.randn(5, 4), torch.arange(5), lr=0.0)
    assert margin.t == 0
    head.centres.table[0] = torch.nan
    assert head.train()(torch.randn(5, 4), torch.arange(5), lr=0.0).isnan()
    assert margin.t == 0


def test_a_margin_on_its_way_shares_t() -> None:
    margin = CurricularFace(m=0.4)
    half = margin.scaled(0.5)
    margin.observe_cosines_(torch.ones(3))
    assert (half.m, half.t.item()) == (0.2, 0.01)
