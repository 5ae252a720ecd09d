"""What is timed does the same work, and the harness times it in turn."""

import json
import multiprocessing
import pickle
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from facescale.backbones.backbone import normalise
from facescale.cli import main
from facescale.cli.bench_kernels import _table
from facescale.data.images import decode
from facescale.data.loader import Batch, Loader
from facescale.random import derive_seed
from facescale.timing import case_of, loaders, steps
from facescale.timing.baselines import (
    DenseHead,
    OwnHead,
    SampledHead,
    TorchStep,
)
from facescale.timing.clock import LEAST, Timed, time_calls
from facescale.timing.inference import trained
from facescale.timing.interleave import Case, Contender, Prepare, Times, interleave
from facescale.training.state import AUGMENT, build
from facescale.training.step import train_step


def test_all_contenders_move_their_centres_alike() -> None:
    random = torch.Generator().manual_seed(0)
    embeddings, labels = (
        torch.randn(6, 16, generator=random),
        torch.randint(40, (6,), generator=random),
    )
    own, dense, sampled = OwnHead(40, 16, 1.0), DenseHead(40, 16, 1.0), SampledHead(40, 16, 1.0)
    start = own.head.centres.full().clone()
    with torch.no_grad():
        dense.weight.copy_(start)
        sampled.weight.copy_(start)
    heads: list[OwnHead | DenseHead | SampledHead] = [own, dense, sampled]
    gradients = []
    for head in heads:
        for _ in range(2):
            features = embeddings.clone().requires_grad_()
            head.step(features, labels)
        assert features.grad is not None
        gradients.append(features.grad)
    for other in gradients[1:]:
        torch.testing.assert_close(other, gradients[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(dense.weight.detach(), own.head.centres.full(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(sampled.weight, own.head.centres.full(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [OwnHead, DenseHead, SampledHead])
def test_a_tenth_of_the_rows_is_drawn(
    kind: type[OwnHead] | type[DenseHead] | type[SampledHead],
) -> None:
    head = kind(200, 8, 0.1)
    rows = head.head.centres.table[:, 0] if isinstance(head, OwnHead) else head.weight
    before = rows.detach().clone()
    head.step(torch.randn(4, 8).requires_grad_(), torch.tensor([0, 50, 100, 199]))
    moved = (rows.detach() != before).any(dim=1)
    assert moved[[0, 50, 100, 199]].all()
    # arcface_torch's plan decays every row, MXNet moves 20 with the classes of the batch, and
    # ours draws 20 and adds those of the four classes that were not drawn
    counts = {OwnHead: range(20, 25), DenseHead: [200], SampledHead: [20]}
    assert int(moved.sum()) in counts[kind]


def test_the_two_steps_move_the_backbone_alike() -> None:
    identities, batch = 40, 4
    config = steps.config_of("y1", batch, identities, 1.0)
    exact = replace(config, train=replace(config.train, precision="float64"))
    state = build(exact, torch.device("cpu"))
    other = TorchStep("y1", lambda dim: DenseHead(identities, dim, 1.0))
    other.backbone.double().load_state_dict(state.backbone.state_dict())
    other.head.weight.data = state.head.centres.full().clone()
    random = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (batch, 3, 112, 112), dtype=torch.uint8, generator=random)
    labels = torch.randint(identities, (batch,), generator=random)
    flipped = state.augment(pixels, seed=derive_seed(0, AUGMENT), position=0)
    before = [p.detach().clone() for p in state.backbone.parameters()]
    train_step(state, Batch(pixels, labels, 0, 0, np.arange(batch)))
    other.step(flipped.double(), labels)
    ours, theirs = list(state.backbone.parameters()), list(other.backbone.parameters())
    assert any(not torch.equal(p, start) for p, start in zip(ours, before, strict=True))
    for mine, truth in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, truth, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(other.head.weight, state.head.centres.full(), rtol=1e-9, atol=1e-9)


def test_no_layer_of_ours_is_in_the_baseline() -> None:
    module = TorchStep("r18", lambda dim: DenseHead(10, dim, 1.0)).backbone
    kinds = {type(layer) for layer in module.modules() if not list(layer.children())}
    assert all(kind.__module__.startswith("torch.") for kind in kinds)


@pytest.mark.parametrize(("network", "gflop"), [("r100", 72.5), ("mbf", 2.6)])
def test_flop_of_an_image_are_the_published_ones(network: str, gflop: float) -> None:
    assert steps.flop(network) / 1e9 == pytest.approx(gflop, rel=0.02)


@pytest.fixture
def forks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A contender starts without Python's start and imports."""
    fork = multiprocessing.get_context("fork")
    monkeypatch.setattr(multiprocessing, "get_context", lambda method: fork)


@pytest.mark.slow
def test_contenders_take_turns_in_processes_that_start_anew() -> None:
    take_turns()


@pytest.mark.usefixtures("forks")
def test_contenders_take_turns() -> None:
    take_turns()


def take_turns() -> None:
    case = pickle.loads(pickle.dumps(case_of("head/2000/0.5/4/16")))  # as a new process gets it
    chosen = tuple(c for c in case.contenders if c.name in ("facescale", "dense tuned"))
    times = interleave(replace(case, contenders=chosen, probe=(256, 256, 256)), 2)
    assert times.interleaved
    assert {name: len(seconds) for name, seconds in times.steps.items()} == {
        "facescale": 2,
        "dense tuned": 2,
    }
    assert times.floor > 0
    assert json.loads(json.dumps(times.record()))["case"] == "head/2000/0.5/4/16"


@pytest.mark.usefixtures("forks")
def test_what_does_not_fit_takes_the_machine_one_by_one() -> None:
    step = Contender("a", partial(_counting, 1), memory=2.0)
    case = Case("", "", (step, replace(step, name="b")), samples=1, probe=(256, 256, 256))
    times = interleave(case, 2, memory=3.0)
    assert not times.interleaved
    assert {name: len(seconds) for name, seconds in times.steps.items()} == {"a": 2, "b": 2}


@pytest.mark.usefixtures("forks")
def test_a_contender_that_dies_is_named() -> None:
    case = Case("", "", (Contender("a", partial(_counting, 0), memory=0.0),), samples=1)
    with pytest.raises(ChildProcessError, match="a ended with status 1"):
        interleave(case, 1)


@pytest.mark.usefixtures("forks")
@pytest.mark.parametrize("memory", [None, 0.5], ids=["together", "one by one"])
def test_another_that_dies_takes_no_further_part(
    memory: float | None, capsys: pytest.CaptureFixture[str]
) -> None:
    contenders = (
        Contender("a", partial(_counting, 1), 1.0),
        Contender("b", partial(_counting, 0), 1.0),
    )
    times = interleave(Case("", "", contenders, samples=1, probe=(256, 256, 256)), 2, memory)
    assert len(times.steps["a"]) == 2
    assert "b ended with status 1" in times.lost["b"]
    Console().print(_table(times))
    (row,) = (line for line in capsys.readouterr().out.splitlines() if line.strip().startswith("b"))
    assert row.split() == ["b", "-", "-", "-", "-", "-"]


def _counting(divisor: int) -> Prepare:
    assert divisor, "no such step"
    return lambda: lambda: None


def test_ratios_are_taken_round_by_round() -> None:
    contenders = tuple(Contender(name, partial(_counting, 1), 0.0) for name in ("ours", "dense"))
    case = Case("", "", contenders, samples=2, flop=1e6, traffic=3e6)
    steps = {"ours": [1.0, 2.0, 4.0], "dense": [3.0, 8.0, 4.0]}
    times = Times(case, True, steps, gemm=[1e6, 2e6, 1e6], copy=[1e6, 1e6, 1e6])
    assert times.ratio("dense") == 3.0
    assert times.floor == pytest.approx(1.0 + 3.0)
    assert times.share("ours") == pytest.approx(0.25)  # of 1, 1/4, 1/4


def test_a_case_is_called_by_its_sizes() -> None:
    case = case_of("head/360232/0.1")
    assert case.flop == 3 * 2 * 36_023 * 512 * 64
    assert case.traffic == 5 * 4 * 36_023 * 512
    assert [c.name for c in case.contenders] == [
        "facescale",
        "dense",
        "dense tuned",
        "sampled",
        "sampled tuned",
    ]
    assert [c.keeps_memory for c in case.contenders] == [True, False, True, False, True]


def test_a_device_has_each_method_once_and_no_loader() -> None:
    case = case_of("head/360232/0.1", "cuda")
    assert case.device == "cuda"
    assert [c.name for c in case.contenders] == ["facescale", "dense", "sampled"]
    assert all(isinstance(c.build, partial) and "cuda" in c.build.args for c in case.contenders)
    assert [c.name for c in case_of("step/y1/4", "cuda").contenders][1:] == ["dense", "sampled"]
    with pytest.raises(ValueError, match="a loader works on the CPU"):
        case_of("loader", "cuda")


def test_calls_are_timed_five_times_at_least() -> None:
    calls: list[int] = []
    timed = time_calls(lambda: calls.append(1), torch.device("cpu"), warmup=3, seconds=0.0)
    assert len(timed.seconds) == LEAST == 5
    assert len(calls) == 3 + 1 + 5
    assert Timed([1.0, 2.0, 3.0, 4.0, 5.0]).median == 3.0


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("heads/1", "no case 'heads/1'; there are head/IDENTITIES"),
        ("head", r"'head' does not fit; write head/IDENTITIES\[/RATE\]"),
        ("head/many", "'head/many' does not fit"),
        ("head/10/0", "'head/10/0' does not fit"),
        ("head/1/1/1/1/1", "does not fit"),
        ("backbone/r17", "unknown backbone 'r17'"),
    ],
)
def test_other_names_are_refused(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        case_of(name)


def test_the_loaders_make_the_same_of_an_image() -> None:
    people = loaders.photographs(5)
    with Loader(people, 5, seed=3) as batches:
        ours = next(batches)
    normal = normalise(ours.images, torch.float32, 127.5)
    for decoder in (decode, loaders.decode_by_pillow):
        faces = loaders.TorchFaces(people, decoder)
        for row, index in enumerate(ours.indices.tolist()):
            mirrored = set()
            for _ in range(20):  # a coin 20 times on one side: once in half a million
                image, label = faces[index]
                sides = [torch.allclose(x, normal[row], atol=1e-6) for x in (image, image.flip(2))]
                assert any(sides)
                mirrored.add(sides[0])
            assert label == ours.labels[row]
            assert mirrored == {True, False}


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on one core
@pytest.mark.parametrize("threads", [1, 2])
def test_all_loaders_make_as_many_batches(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loaders, "BATCHES", 3)
    people = loaders.photographs(7)
    case = case_of(f"loader/{threads}/4//a/set")
    assert case.samples == 12
    for contender in case.contenders:
        assert isinstance(contender.build, partial)
        build, folder, *sizes = contender.build.args
        assert (folder, sizes) == ("/a/set", [threads, 4])
        build(people, *sizes)()()


@pytest.mark.slow
def test_all_embed_alike() -> None:
    pytest.importorskip("onnxruntime", reason="it comes with the extra 'export'")
    backbone = trained("y1")
    pixels = steps.pixels(3)
    with torch.no_grad():
        truth = backbone(pixels)
    answers = []
    for contender in case_of("inference/y1/3").contenders:
        answer: Any = contender.build()()()
        answers.append(torch.as_tensor(answer[0] if isinstance(answer, list) else answer))
    assert len(answers) == 4
    for answer in answers:
        assert (answer - truth).abs().max() < 1e-4 * truth.abs().max()


def test_what_was_timed_is_kept_where_a_later_case_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def time(case: Case, rounds: int) -> Times:
        if case.name == "head/20/1":
            raise ChildProcessError("facescale ended with status -9")
        steps = {contender.name: [1.0] * rounds for contender in case.contenders}
        return Times(case, True, steps, gemm=[1e9, 3e9], copy=[1e9, 3e9])

    monkeypatch.setattr("facescale.timing.interleave.interleave", time)
    output = tmp_path / "times.json"
    options = ["--device", "cpu", "--rounds", "2", "--output", str(output)]
    with pytest.raises(SystemExit):
        main(["bench", "kernels", "head/10/1", "head/20/1", *options])
    assert "product 2 GFLOP/s, copy 2.0 GB/s" in capsys.readouterr().out  # medians
    assert [record["case"] for record in json.loads(output.read_text())] == ["head/10/1"]
