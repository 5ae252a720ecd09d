"""Schedules to the step, and which parameters decay."""

from typing import Any

import pytest
import torch

from facescale import backbones
from facescale.config import BackboneConfig, Config, OptimConfig, ScheduleConfig, TrainConfig
from facescale.training import build
from facescale.training.optim import decay_groups, make_optimizer, make_schedule, unreached
from runs import CPU, small_run


@pytest.mark.parametrize(
    ("boundaries", "scales", "expected"),
    [
        ([100_000, 160_000], [0.1, 0.01], {0: 1, 99_999: 1, 100_000: 0.1, 160_000: 0.01}),
        (
            [200_000, 400_000, 500_000, 550_000],
            [0.1, 0.01, 0.001, 0.0001],
            {199_999: 1, 200_000: 0.1, 450_000: 0.01, 549_999: 0.001, 600_000: 0.0001},
        ),
    ],
)
def test_step_schedule_changes_at_the_reports_iterations(
    boundaries: list[int], scales: list[float], expected: dict[int, float]
) -> None:
    config = ScheduleConfig(kind="step", boundaries=boundaries, scales=scales)
    schedule = make_schedule(config, 600_001)
    assert {step: schedule(step) for step in expected} == expected


def test_linear_schedule_warms_up_and_falls_to_zero() -> None:
    schedule = make_schedule(ScheduleConfig(kind="linear", warmup=10), 110)
    assert [schedule(step) for step in (0, 5, 10, 60, 110)] == [0.0, 0.5, 1.0, 0.5, 0.0]


def test_cosine_schedule_is_half_way_at_the_middle() -> None:
    schedule = make_schedule(ScheduleConfig(kind="cosine"), 100)
    assert [schedule(step) for step in (0, 50, 100)] == pytest.approx([1.0, 0.5, 0.0])


def test_polynomial_schedule_has_the_numbers_of_poly_scheduler() -> None:
    # arcface_torch's, of power 2: base * (1 - (step - warmup) / (steps - warmup)) ** 2
    config = ScheduleConfig(kind="polynomial", warmup=4)
    schedule = make_schedule(config, 20)
    theirs = [step / 4 for step in range(4)]
    theirs += [(1 - (step - 4) / (20 - 4)) ** 2 for step in range(4, 21)]
    assert [schedule(step) for step in range(21)] == pytest.approx(theirs, abs=1e-15)
    straight = make_schedule(ScheduleConfig(kind="polynomial", power=1.0, warmup=4), 20)
    linear = make_schedule(ScheduleConfig(kind="linear", warmup=4), 20)
    assert [straight(step) for step in range(21)] == [linear(step) for step in range(21)]


def test_unequal_boundaries_and_scales_are_refused() -> None:
    with pytest.raises(ValueError, match="2 boundaries but 1 scales; give one scale for each"):
        ScheduleConfig(kind="step", boundaries=[1, 2], scales=[0.1])
    with pytest.raises(ValueError, match=r"boundaries must grow, got \[2, 1\]"):
        ScheduleConfig(kind="step", boundaries=[2, 1], scales=[0.1, 0.01])


def test_decay_of_weights_leaves_out_batchnorm_prelu_and_biases() -> None:
    backbone = backbones.build("y1")
    learning = [p for p in backbone.parameters() if p.requires_grad]
    (everything,) = decay_groups(backbone, 0.1, "all")
    assert len(everything["params"]) == len(learning)
    weights, rest = decay_groups(backbone, 0.1, "weights")
    assert weights["weight_decay"] == 0.1
    assert rest["weight_decay"] == 0.0
    assert all(p.ndim > 1 for p in weights["params"])
    assert len(weights["params"]) + len(rest["params"]) == len(learning)


def test_adafaces_decay_is_of_all_but_the_norms() -> None:
    config = small_run(
        backbone=BackboneConfig(name="r18", family="arcface_torch", image_size=28),
        optim=OptimConfig(decay="all_but_norms"),
        train=TrainConfig(batch_size=4, steps=1, sync_batchnorm=True),
    )
    state = build(config, CPU)  # with accelerated layers
    decaying, rest = (set(group["params"]) for group in state.optimizer.param_groups)
    for name, parameter in state.backbone.named_parameters():
        layer = name.split(".")[-2]
        is_norm = layer in ("bn1", "bn2", "bn3", "features") or name.endswith(
            ("downsample.1.weight", "downsample.1.bias")
        )
        expected = rest if is_norm else decaying
        assert parameter in expected or not parameter.requires_grad, name
    assert any(name.endswith("prelu.weight") for name, _ in state.backbone.named_parameters())


def test_adamw_and_sgd_are_torchs_own() -> None:
    backbone = backbones.build("y1")
    assert isinstance(make_optimizer(backbone, OptimConfig(name="adamw")), torch.optim.AdamW)
    sgd = make_optimizer(backbone, OptimConfig(name="sgd", momentum=0.8))
    assert sgd.param_groups[0]["momentum"] == 0.8


def test_a_first_fused_step_that_changes_nothing_leaves_no_momentum() -> None:
    layer = torch.nn.Linear(3, 2)
    optimizer = make_optimizer(layer, OptimConfig(fused=True))
    for parameter in layer.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.found_inf = torch.ones(())  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True)  # fresh memory is filled with NaN
    try:
        optimizer.step()
    finally:
        torch.use_deterministic_algorithms(False)
    assert [s["momentum_buffer"].count_nonzero() for s in optimizer.state.values()] == [0, 0]


def test_what_a_run_never_does_is_told() -> None:
    step: dict[str, Any] = {"boundaries": [1, 5], "scales": [0.1, 0.01]}
    falls, steps = ScheduleConfig(**step), ScheduleConfig(kind="step", **step)
    for optim, train, lines in (
        (OptimConfig(schedule=steps), TrainConfig(), ["5 lie beyond"]),
        (OptimConfig(schedule=falls), TrainConfig(), []),
        (OptimConfig(), TrainConfig(accumulate=5), ["the backbone never changes"]),
        (OptimConfig(), TrainConfig(accumulate=4), []),
    ):
        told = unreached(Config(optim=optim, train=train), 4)
        assert len(told) == len(lines)
        assert all(line in said for line, said in zip(lines, told, strict=True))
