"""The whole training step: the targets' cases, the published report's rows, then all others."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

from facescale.timing.baselines import DenseHead, TorchStep
from facescale.timing.clock import Timed, time_calls
from facescale.timing.device.bench import Bench, Row, peaks
from facescale.timing.device.ceilings import tf32_products
from facescale.timing.device.sizes import Sizes
from facescale.timing.interleave import Prepare
from facescale.timing.steps import config_of, flop, own_step, torch_step

OURS, PEER = "facescale", "arcface_torch"
SMALL_LR = 0.001
"""Labels are random, so a usual learning rate could lead to NaN; the speed is the same."""
FEW = 1024
"""Identities of a head that takes no time to speak of, to tell what a large one adds."""
WAYS = ("eager", "graphs", "compile", "compile and graphs")
"""Of the light networks; the first one is timed in all of them, the others in the first two."""


@dataclass(frozen=True)
class Setting:
    """One training step to time."""

    network: str
    batch: int
    precision: str
    identities: int
    dataset: str = ""
    rate: float = 1.0
    who: str = OURS
    way: str = "eager"
    """One of `WAYS`: with those options of the trainer, which takes graphs by default."""


def run(bench: Bench) -> None:
    """Time every setting that there is time for."""
    for setting in settings(bench.sizes, bench.on_cuda):
        measure_step(bench, setting)


def measure_step(bench: Bench, setting: Setting) -> Row | None:
    """Time a step, and note it with its setting."""
    return bench.notes.measure(row_of(setting), partial(time_step, bench, setting))


def row_of(setting: Setting) -> Row:
    """The fields of a setting by name."""
    return {field.name: getattr(setting, field.name) for field in fields(setting)}


def settings(sizes: Sizes, on_cuda: bool) -> list[Setting]:
    """The most telling first, each once."""
    light = list(_light(sizes)) if on_cuda else []
    compiled = [setting for setting in light if "compile" in setting.way]  # takes a minute each
    quick = [setting for setting in light if setting not in compiled]

    def usual(chosen: Iterable[Setting]) -> list[Setting]:
        """Ours as the trainer takes them on the device by default."""
        return [replace(s, way="graphs") if on_cuda and s.who == OURS else s for s in chosen]

    eager, targets, report = next(_targets(sizes)), _targets(sizes), _report(sizes)
    listed = [*usual(targets), eager, *quick, *usual(report), *compiled, *usual(_grid(sizes))]
    return list(dict.fromkeys(listed))


def _targets(sizes: Sizes) -> Iterator[Setting]:
    """What the targets ask of the first network: throughput, and the head's share."""
    (large, identities), network = next(iter(sizes.identities.items())), sizes.networks[0]
    for precision in sizes.precisions[:2]:
        ours = Setting(network, sizes.batches[0], precision, identities, large, 0.1)
        yield ours
        yield Setting(**(row_of(ours) | {"who": PEER}))
        if precision == sizes.precisions[0]:
            yield Setting(**(row_of(ours) | {"identities": FEW, "dataset": "", "rate": 1.0}))


def _light(sizes: Sizes) -> Iterator[Setting]:
    """Networks that may be bound by their host, eager and with CUDA graphs."""
    dataset, identities = next(iter(sizes.identities.items()))
    for network in sizes.light:
        for way in WAYS[: 4 if network == sizes.light[0] else 2]:
            yield Setting(network, sizes.batches[0], "bf16", identities, dataset, 0.1, way=way)


def _report(sizes: Sizes) -> Iterator[Setting]:
    """The rows of the published report at its fixed batch, on one device, in float32."""
    heavy, light = sizes.report_batch
    for dataset, identities in reversed(sizes.identities.items()):
        for rate in (1.0, 0.1):
            yield Setting(sizes.networks[0], heavy, "float32", identities, dataset, rate)
    emore = sizes.identities["emore"]
    yield Setting("y1", light, "float32", emore, "emore")


def _grid(sizes: Sizes) -> Iterator[Setting]:
    """Data sets x rate x precision x batch."""
    for batch in sizes.batches:
        for precision in sizes.precisions:
            for dataset, identities in sizes.identities.items():
                for rate in (0.1, 1.0):
                    yield Setting(sizes.networks[0], batch, precision, identities, dataset, rate)


def time_step(bench: Bench, setting: Setting) -> Row:
    """Time one setting."""
    with tf32_products(setting.who == PEER and setting.precision == "tf32"):
        prepare = prepare_step(bench, setting)
        timed = time_calls(lambda: prepare()(), bench.device, seconds=bench.sizes.seconds)
    return step_row(bench, setting, timed)


def step_row(bench: Bench, setting: Setting, timed: Timed) -> Row:
    """The figures of a step that was timed."""
    return {
        "ms": 1e3 * timed.median,
        "spread": timed.spread,
        "images_per_s": setting.batch / timed.median,
        "flop": flop(setting.network) * setting.batch,
        **peaks(bench.device),
    }


def prepare_step(bench: Bench, setting: Setting) -> Prepare:
    """The trainer's step, or arcface_torch's: a dense head, autocast, layers of torch."""
    device = bench.device.type
    if setting.who == OURS:
        return own_step(config_for(setting), device)

    def head(dim: int) -> DenseHead:
        return DenseHead(setting.identities, dim, setting.rate, device, setting.precision)

    contender = TorchStep(setting.network, head, device, setting.precision)
    return torch_step(contender, setting.batch, setting.identities, device)


def config_for(setting: Setting, **more: Any) -> Any:
    """The trainer's config for a setting; `more` are options as in `config_of`."""
    options: dict[str, Any] = {"precision": setting.precision, **more}
    options |= {name: name in setting.way for name in ("compile", "graphs")}
    if setting.precision in ("bf16", "fp16"):
        options.setdefault("products", "bf16")
    return config_of(
        setting.network, setting.batch, setting.identities, setting.rate, lr=SMALL_LR, **options
    )
