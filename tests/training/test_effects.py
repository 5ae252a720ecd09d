"""Options without effect are named, and only those."""

from typing import Any

import pytest

from facescale.cli.layers import build
from facescale.config import Config
from facescale.training.effects import without_effect
from runs import small_run


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, []),
        (
            {"optim.schedule.power": 3.0},
            ["optim.schedule.power is without effect: optim.schedule.kind is linear"],
        ),
        ({"optim.schedule.kind": "polynomial", "optim.schedule.power": 3.0}, []),
        (
            {"optim.schedule.boundaries": [1], "optim.schedule.scales": [0.1]},
            ["optim.schedule.boundaries is without effect: optim.schedule.kind is linear"],
        ),
        (
            {
                "optim.schedule.kind": "step",
                "optim.schedule.boundaries": [1],
                "optim.schedule.scales": [0.1],
            },
            [],
        ),
        (
            {"head.margin.name": "arcface", "head.margin.m2": 0.3},
            ["head.margin.m2 is without effect: head.margin.name is arcface, which takes m, grad"],
        ),
        ({"head.margin.m2": 0.3}, []),
        ({"head.margin.name": "arcface", "head.margin.gradient": "straight-through"}, []),
        (
            {"head.margin.name": "adaface", "head.margin.gradient": "straight-through"},
            ["head.margin.gradient is without effect: head.margin.name is adaface"],
        ),
        ({"optim.name": "adamw", "optim.momentum": 0.8}, []),  # the centres' SGD has it
        (
            {"optim.name": "adamw", "optim.head_name": "adamw", "optim.momentum": 0.8},
            ["optim.momentum is without effect: optim.name is adamw"],
        ),
        (
            {"optim.head_name": "adamw", "head.momentum": 0.0},
            ["head.momentum is without effect: optim.head_name is adamw"],
        ),
        (
            {"train.batch_size": 8, "train.global_batch_size": 16},
            ["train.batch_size is without effect: train.global_batch_size is given"],
        ),
        ({"data.path": ["a", "b"], "data.people": "by_name"}, []),
        (
            {"data.path": "a", "data.people": "by_name"},
            ["data.people is without effect: data.path is one set"],
        ),
    ],
)
def test_an_option_without_effect_is_named(options: dict[str, Any], said: list[str]) -> None:
    config: Config = build(options)
    found = without_effect(config)
    assert len(found) == len(said)
    for line, begin in zip(found, said, strict=True):
        assert line.startswith(begin)


def test_the_runs_of_tests_have_none() -> None:
    assert without_effect(small_run()) == []
