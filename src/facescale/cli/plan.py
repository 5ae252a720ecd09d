"""`facescale plan`: what a run will need of memory, and how far it could grow."""

import argparse
from typing import TYPE_CHECKING, Any

from facescale.cli.options import add_config_options, read_config
from facescale.cli.parser import Parser
from facescale.cli.terminal import say, show, show_json, table

if TYPE_CHECKING:
    from facescale.plan.plan import Plan, Planner

USAGE = "facescale plan PRESET [--devices N] [--memory SIZE] [options]"
ABOUT = """
  PRESET                  a name of `facescale presets`, or a YAML file
  --devices N             GPUs, or ranks on the CPU
  --memory SIZE           of each device, such as 16GiB: does it fit, what would?
  --sample-rate X         fraction of the classes in each step (Partial FC)
  --precision P           float32, bf16, fp16, ...
  --data.num_classes N    identities
  --train.batch_size N    images of a device in a step"""


def add_options(parser: Parser) -> None:
    """What the command understands: the devices, and every field of `Config`."""
    add = parser.add_argument
    add("--devices", type=int, default=1, metavar="N", help="devices, or ranks on the CPU [1]")
    add("--memory", metavar="SIZE", help="of each device, such as 16GiB")
    add("--sample-rate", metavar="X", dest="head.sample_rate", default=argparse.SUPPRESS,
        help="same as --head.sample_rate")  # fmt: skip
    add("--precision", metavar="NAME", dest="train.precision", default=argparse.SUPPRESS,
        help="same as --train.precision")  # fmt: skip
    add("--json", action="store_true", help="for programs")
    add_config_options(parser)


def run(chosen: argparse.Namespace) -> None:
    """Show the parts, whether they fit, and what would still fit."""
    config = read_config(chosen, keep_sizes=True)
    if config.data.num_classes is None:
        raise ValueError("the plan needs the number of identities: pass --data.num_classes")
    import torch
    import torch._dynamo  # 60 MB, which a rank's first optimizer imports

    from facescale.distributed import device_type
    from facescale.plan.plan import Planner
    from facescale.plan.units import parse_bytes
    from facescale.training.metrics import peak_memory

    process = peak_memory(torch.device("cpu"))  # as a rank starts: all imported, nothing done
    memory = None if chosen.memory is None else parse_bytes(chosen.memory)
    planner = Planner(config, chosen.devices, device_type(config.device), process)
    plan = planner.plan(planner.batch, config.data.num_classes, memory)
    limits = {} if memory is None else _limits(planner, plan, memory)
    if chosen.json:
        confirmed = planner.device_type == "cpu"
        sizes = {"parts": plan.parts, "total": plan.total, "batch": plan.batch}
        show_json({**sizes, "confirmed": confirmed, **limits})
        return
    _show_setting(planner, plan)
    _show_parts(plan)
    if planner.device_type != "cpu":
        say("No GPU has confirmed this plan: it is counted, not measured (docs/gpu.md).")
    if memory is not None:
        _show_limits(limits, memory)
    _show_published()


def _limits(planner: "Planner", plan: "Plan", memory: int) -> dict[str, Any]:
    """Whether it fits into so many bytes, and how far it could grow."""
    return {
        "fits": plan.fits,
        "largest_batch": planner.largest_batch(plan.num_classes, memory),
        "most_identities": planner.most_identities(plan.batch, memory),
    }


def _show_setting(planner: "Planner", plan: "Plan") -> None:
    from facescale.training.precision import settled

    config = planner.config
    precision = settled(config, planner.device_type).train.precision
    say(
        f"[bold]{config.backbone.name}[/], {plan.num_classes:,} identities, sample rate "
        f"{config.head.sample_rate:g}, {precision}, batch {plan.batch} on each of "
        f"{planner.devices} {planner.device_type} device(s), {planner.shards} shard(s)"
    )


def _show_parts(plan: "Plan") -> None:
    from facescale.plan.units import show_bytes

    shown = table("on each device", "memory")
    for name, size in plan.parts.items():
        shown.add_row(name, show_bytes(size))
    shown.add_row("[bold]all[/]", f"[bold]{show_bytes(plan.total)}[/]")
    show(shown)


def _show_limits(limits: dict[str, Any], memory: int) -> None:
    from facescale.plan.units import show_bytes

    verdict = "[green]fits[/]" if limits["fits"] else "[red]does not fit[/]"
    batch, identities = limits["largest_batch"], limits["most_identities"]
    say(f"{verdict} in {show_bytes(memory)}")
    say(f"largest batch of a device   [bold]{batch:,}[/] at this number of identities")
    say(f"most identities in all      [bold]{identities:,}[/] at this batch")


def _show_published() -> None:
    from facescale.report.published import MOST_IDENTITIES

    say("\nPublished, on other hardware: most identities")
    shown = table("system", "GPUs", "setting", "identities", left=3)
    for entry in MOST_IDENTITIES:
        gpus = f"{entry.devices} x V100-{entry.card_gib}GB"
        shown.add_row(entry.system, gpus, entry.setting, f"{entry.identities:,}")
    show(shown)
