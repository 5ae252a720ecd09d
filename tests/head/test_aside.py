"""The centres move beside the device's queue, and everyone who reads them waits."""

import copy
import io
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

import facescale
from facescale.head import aside
from facescale.head.walks import cuda
from late_aside import LateAside, late_asides
from triton_process import interpreted, needs_triton

pytestmark = needs_triton
CLASSES, DIM, BATCH, LR = 60, 16, 5, 0.2


def make_head(late: bool = True, **kind: Any) -> facescale.MarginHead:
    with late_asides() if late else nullcontext():
        head = facescale.MarginHead(CLASSES, DIM, **({"sample_rate": 0.5} | kind))
    head.centres.start_()
    return head


def batch(step: int) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(step)
    embeddings = torch.randn(BATCH, DIM, generator=random).requires_grad_()
    return embeddings, torch.randint(CLASSES, (BATCH,), generator=random)


def steps(head: facescale.MarginHead, count: int) -> list[Tensor]:
    seen = []
    for step in range(count):
        embeddings, labels = batch(step)
        loss = head(embeddings, labels, LR)
        loss.backward()
        assert embeddings.grad is not None
        seen += [loss.detach(), embeddings.grad]
    return seen


def late_steps(kind: dict[str, Any]) -> None:
    with mock.patch.object(cuda, "LEAST_ROWS", 16):
        _late_steps(kind)


def _late_steps(kind: dict[str, Any]) -> None:
    late, early = make_head(**kind), make_head(late=False, **kind)
    assert type(early.centres.aside) is aside.AtOnce
    found, truth = steps(late, 3), steps(early, 3)
    assert all(torch.equal(one, other) for one, other in zip(found, truth, strict=True))
    # The last step has not moved anything yet.
    assert isinstance(late.centres.aside, LateAside)
    assert late.centres.aside.order == ["run", "wait", "run", "wait", "run"]
    assert not torch.equal(late.centres._buffers["table"], early.centres.table)  # type: ignore[arg-type]
    late.settle()
    assert torch.equal(late.centres._buffers["table"], early.centres.table)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "kind",
    [{}, {"dtype": torch.int8, "momentum": 0.0}, {"sample_rate": 1.0, "logits_budget": 4 * 5 * 32}],
    ids=str,
)
def test_late_moves_are_those_at_once(kind: dict[str, Any]) -> None:
    interpreted(late_steps, kind)


def saved(head: facescale.MarginHead) -> Tensor:
    file = io.BytesIO()
    torch.save(head.state_dict(), file)
    file.seek(0)
    table: Tensor = torch.load(file)["centres.table"]
    return table


def filled(head: facescale.MarginHead) -> Tensor:
    head.load_state_dict(make_head(late=False, sample_rate=1.0).state_dict())
    head.settle()
    return head.centres._buffers["table"]  # type: ignore[return-value]


def put(head: facescale.MarginHead) -> Tensor:
    head.centres.put_(torch.arange(CLASSES), torch.zeros(CLASSES, 2, DIM))
    head.settle()
    return head.centres._buffers["table"]  # type: ignore[return-value]


def written(head: facescale.MarginHead) -> Tensor:
    weight, velocity = head.centres.read(slice(0, CLASSES))
    weight.zero_(), velocity.zero_()
    head.settle()
    return head.centres._buffers["table"]  # type: ignore[return-value]


READERS: dict[str, Callable[[facescale.MarginHead], Tensor]] = {
    "table": lambda head: head.centres.table,
    "weight": lambda head: head.centres.weight(torch.arange(CLASSES)),
    "read": lambda head: torch.stack(head.centres.read(torch.arange(CLASSES))),
    "full": lambda head: head.centres.full(),
    "state_dict": lambda head: head.state_dict()["centres.table"],
    "a state_dict that is kept": saved,
    "a copy": lambda head: copy.deepcopy(head).centres._buffers["table"],  # type: ignore[dict-item,return-value]
    "to another type": lambda head: head.double().centres._buffers["table"],  # type: ignore[dict-item,return-value]
    "load_state_dict": filled,
    "put_": put,
    "write_": written,
    "the next loss": lambda head: head(*batch(9), LR).detach(),
    "a loss in eval mode": lambda head: head.eval()(*batch(9), 0.0).detach(),
}


def reads(name: str) -> None:
    read = READERS[name]
    late, early = make_head(sample_rate=1.0), make_head(late=False, sample_rate=1.0)
    for head in (late, early):
        steps(head, 2)
    assert torch.equal(read(late), read(early)), name


@pytest.mark.parametrize("name", READERS)
def test_every_reader_sees_what_the_last_step_has_moved(name: str) -> None:
    interpreted(reads, name)


def keeps_what_it_uses() -> None:
    head = make_head()
    steps(head, 1)
    assert isinstance(head.centres.aside, LateAside)
    uses = head.centres.aside.used[0]
    # Gradients of the products, radial parts, rows, batch, and the flag of a bad step.
    assert [tuple(t.shape) for t in uses] == [(35, 5), (35,), (35,), (5, 16), (1,)]


def test_memory_of_the_move_is_kept_until_it_is_done() -> None:
    interpreted(keeps_what_it_uses)


def by_option() -> None:
    with late_asides():
        head = facescale.MarginHead(CLASSES, DIM, overlap=False)
    assert type(head.centres.aside) is aside.AtOnce


def test_without_overlap_nothing_is_put_off() -> None:
    interpreted(by_option)


class Calls:
    """`torch.cuda`'s streams and events, of which only the calls are kept."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.current = self.stream("main", 1)
        self.side = self.stream("side", 2)

    def note(self, what: str) -> str:
        self.seen.append(what)
        return "event"

    def stream(self, name: str, number: int) -> mock.Mock:
        stream = mock.Mock(cuda_stream=number)
        stream.wait_stream = lambda other: self.seen.append(f"{name} waits")
        stream.wait_event = lambda event: self.seen.append(f"{name} waits for {event}")
        stream.record_event.side_effect = lambda: self.note(f"{name} records")
        return stream


def test_a_side_stream_waits_for_the_queue_and_the_queue_for_it() -> None:
    calls, tensor = Calls(), mock.Mock()
    tensor.record_stream = lambda stream: calls.seen.append("memory is kept")
    with (
        mock.patch.object(torch.cuda, "Stream", return_value=calls.side),
        mock.patch.object(torch.cuda, "current_stream", side_effect=lambda _: calls.current),
        mock.patch.object(torch.cuda, "stream", return_value=nullcontext()),
    ):
        stream = aside.SideStream(torch.device("cuda", 0))
        stream.wait()
        assert calls.seen == []  # nothing to wait for
        stream.run(lambda: calls.seen.append("work"), [tensor])
        assert calls.seen == ["side waits", "work", "memory is kept", "side records"]
        calls.seen.clear()
        stream.wait()
        stream.wait()
        assert calls.seen == ["main waits for event"]
        calls.current = calls.stream("other", 3)
        stream.wait()
        assert calls.seen == ["main waits for event", "other waits for event"]
        assert type(copy.deepcopy(stream)) is aside.SideStream
