"""What goes wrong in the hands of others is an error, or right; never silently wrong."""

import copy
import io
import math
import multiprocessing
import subprocess
import sys

import pytest
import torch
from torch import Tensor

import facescale
from facescale.head.walks.cpu import CompiledWalk

WALKS = ["compiled", "blocks"]


@pytest.fixture(params=WALKS)
def walk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each of the walks, by name."""
    if request.param == "blocks":
        monkeypatch.setattr(CompiledWalk, "serves", lambda step: False)
    return str(request.param)


def make_head(rate: float = 1.0) -> facescale.MarginHead:
    return facescale.MarginHead(50, 16, facescale.arcface(0.5), 32.0, rate, seed=1)


def batch(number: int) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(number)
    embeddings = torch.randn(8, 16, generator=random).requires_grad_()
    return embeddings, torch.randint(50, (8,), generator=random)


def step(head: facescale.MarginHead, number: int) -> float:
    loss = head(*batch(number), lr=0.1)
    loss.backward()
    return float(loss.detach())


def test_a_state_loaded_into_a_used_head_goes_on_as_the_first_would() -> None:
    first, used = make_head(0.1), make_head(0.1)
    for number in range(3):
        step(first, number)
    for number in range(7):  # has touched rows that the first has not, and drawn more often
        step(used, 10 + number)
    used.load_state_dict(first.state_dict())
    assert used.num_steps == first.num_steps == 3
    for number in range(3, 6):
        assert step(used, number) == step(first, number)
    assert torch.equal(used.centres.table, first.centres.table)


def test_a_head_can_be_copied_and_stored() -> None:
    head = make_head(0.1)
    step(head, 0)
    stored = io.BytesIO()
    torch.save(head, stored)
    stored.seek(0)
    copies = [copy.deepcopy(head), torch.load(stored, weights_only=False)]
    loss = step(head, 1)
    for other in copies:
        assert step(other, 1) == loss
        assert torch.equal(other.centres.table, head.centres.table)


@pytest.mark.parametrize("retain", [True, False])
def test_a_second_backward_pass_is_refused_before_anything_moves(walk: str, retain: bool) -> None:
    head = make_head()
    embeddings, labels = batch(0)
    loss = head(embeddings, labels, lr=0.1)
    loss.backward(retain_graph=retain)
    assert embeddings.grad is not None
    table, gradient = head.centres.table.clone(), embeddings.grad.clone()
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()
    assert torch.equal(head.centres.table, table)
    assert torch.equal(embeddings.grad, gradient)


def test_where_nothing_moves_a_second_backward_pass_gives_the_same(walk: str) -> None:
    embeddings, labels = batch(0)
    loss = make_head()(embeddings, labels, lr=0.0)
    one, other = (torch.autograd.grad(loss, embeddings, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(one, other)


def test_a_gradient_of_the_gradient_is_refused_before_anything_moves() -> None:
    head = make_head()
    embeddings, labels = batch(0)
    loss = head(embeddings, labels, lr=0.1)
    table = head.centres.table.clone()
    with pytest.raises(RuntimeError, match="MarginHead has no second derivative"):
        torch.autograd.grad(loss, embeddings, create_graph=True)
    assert torch.equal(head.centres.table, table)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"momentum": -0.1}, r"momentum must be in \[0, 1\), got -0.1"),
        ({"momentum": 1.0}, r"momentum must be in \[0, 1\), got 1.0"),
        ({"weight_decay": -1.0}, "weight_decay must be a number of 0 or more, got -1.0"),
        ({"weight_decay": math.nan}, "weight_decay must be a number of 0 or more, got nan"),
        ({"embedding_dim": 0}, "embedding_dim must be at least 1, got 0"),
        ({"sample_rate": math.nan}, r"sample_rate must be in \(0, 1\], got nan"),
        ({"seed": -1}, r"seed must be in \[0, 2\*\*64\), got -1"),
    ],
)
def test_values_out_of_range_are_named(arguments: dict[str, object], message: str) -> None:
    values: dict[str, object] = {"num_classes": 10, "embedding_dim": 4} | arguments
    with pytest.raises(ValueError, match=message):
        facescale.MarginHead(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize("lr", [-0.1, math.nan, math.inf])
def test_a_learning_rate_out_of_range_is_named(lr: float) -> None:
    with pytest.raises(ValueError, match=f"lr must be a number of 0 or more, got {lr}"):
        make_head()(*batch(0), lr=lr)


@pytest.mark.parametrize("length", [1e-36, 1e-20, 1.0, 1e20, 1e37])
def test_embeddings_of_any_length_give_the_same_loss(length: float) -> None:
    embeddings, labels = batch(0)
    loss = make_head()(embeddings, labels, lr=0.0)
    (gradient,) = torch.autograd.grad(loss, embeddings)
    scaled = (embeddings.detach() * length).requires_grad_()
    other = make_head()(scaled, labels, lr=0.0)
    (scaled_gradient,) = torch.autograd.grad(other, scaled)
    torch.testing.assert_close(other, loss)
    largest = gradient.abs().max().item()
    torch.testing.assert_close(
        scaled_gradient.double() * length, gradient.double(), rtol=0, atol=1e-5 * largest
    )


def test_an_embedding_of_zeros_is_safe() -> None:
    embeddings, labels = batch(0)
    with torch.no_grad():
        embeddings[2] = 0
    loss = make_head()(embeddings, labels, lr=0.1)
    loss.backward()
    assert loss.isfinite()
    assert embeddings.grad is not None
    assert embeddings.grad.isfinite().all()


def test_autocast_does_not_change_the_head(walk: str) -> None:
    answers = []
    for enabled in (False, True):
        head = make_head()
        embeddings, labels = batch(0)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = head(embeddings, labels, lr=0.1)
            loss.backward()
        answers.append((loss, embeddings.grad, head.centres.table))
    for one, other in zip(*answers, strict=True):
        assert torch.equal(one, other)


FORKED = """
import os, sys, torch, facescale
torch.set_num_threads(2)
def step(seed):
    head = facescale.MarginHead(20_000, 64)
    random = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(64, 64, generator=random).requires_grad_()
    head(embeddings, torch.arange(64), lr=0.1).backward()
    return head.centres.table.sum().item()
step(0)  # the parent's threads have worked
child = os.fork()
if child == 0:
    if sys.argv[1] == "one":
        torch.set_num_threads(1)
    try:
        step(1)
    except RuntimeError as error:
        os._exit(3 if "call torch.set_num_threads(1) in it first" in str(error) else 4)
    os._exit(0)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.parametrize(("threads", "status"), [("one", 0), ("two", 3)])
def test_a_fork_after_threads_were_used_works_or_is_refused(threads: str, status: int) -> None:
    done = subprocess.run([sys.executable, "-c", FORKED, threads], timeout=60)
    assert done.returncode == status


def test_a_fork_of_one_thread_trains() -> None:
    assert torch.get_num_threads() == 1
    child = multiprocessing.get_context("fork").Process(target=step, args=(make_head(), 0))
    child.start()
    child.join(60)
    assert child.exitcode == 0
