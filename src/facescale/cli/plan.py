"""`facescale plan`: what a run will need of memory, and how far it could grow."""

from dataclasses import replace

import torch
from jsonargparse import ArgumentParser, Namespace
from rich.console import Console
from rich.table import Table

from facescale.cli.configured import add_config_options, preset_first, read_config
from facescale.distributed import device_type
from facescale.plan.plan import Plan, Planner
from facescale.plan.units import parse_bytes, show_bytes
from facescale.report.published import MOST_IDENTITIES
from facescale.training.metrics import peak_memory

HELP = "predict the memory of a run, the largest batch and the most identities"


def add_options(parser: ArgumentParser) -> None:
    """What the command understands: the devices, and every field of `Config`."""
    parser.add_argument("--devices", type=int, default=1, help="devices, or ranks on the CPU")
    parser.add_argument("--memory", type=str, help="of each device, such as 16GiB")
    parser.add_argument("--sample-rate", type=float, help="same as --head.sample_rate")
    parser.add_argument("--precision", type=str, help="same as --train.precision")
    add_config_options(parser)


def layered(chosen: Namespace, given: list[str]) -> list[str]:
    """The preset's YAML first, so that options override it."""
    return preset_first(["plan"], chosen.preset, given[1:])


def run(chosen: Namespace) -> None:
    """Show the parts, whether they fit, and what would still fit."""
    process = peak_memory(torch.device("cpu"))  # as a rank starts: all imported, nothing done
    config = read_config(chosen)
    if chosen.sample_rate is not None:
        config = replace(config, head=replace(config.head, sample_rate=chosen.sample_rate))
    if chosen.precision is not None:
        config = replace(config, train=replace(config.train, precision=chosen.precision))
    if config.data.num_classes is None:
        raise ValueError("the plan needs the number of identities: pass --data.num_classes")
    memory = None if chosen.memory is None else parse_bytes(chosen.memory)
    planner = Planner(config, chosen.devices, device_type(config.device), process)
    plan = planner.plan(planner.batch, config.data.num_classes, memory)
    terminal = Console(highlight=False)
    _show_setting(terminal, planner, plan)
    terminal.print(_parts_table(plan))
    if memory is not None:
        _show_limits(terminal, planner, plan, memory)
    terminal.print(_published_table())


def _show_setting(terminal: Console, planner: Planner, plan: Plan) -> None:
    config = planner.config
    terminal.print(
        f"[bold]{config.backbone.name}[/], {plan.num_classes:,} identities, sample rate "
        f"{config.head.sample_rate:g}, {config.train.precision}, batch {plan.batch} on each of "
        f"{planner.devices} {planner.device_type} device(s), {planner.shards} shard(s)"
    )


def _parts_table(plan: Plan) -> Table:
    table = Table(box=None, padding=(0, 2), header_style="bold")
    table.add_column("on each device", no_wrap=True)
    table.add_column("memory", justify="right", no_wrap=True)
    for name, size in plan.parts.items():
        table.add_row(name, show_bytes(size))
    table.add_row("[bold]all[/]", f"[bold]{show_bytes(plan.total)}[/]")
    return table


def _show_limits(terminal: Console, planner: Planner, plan: Plan, memory: int) -> None:
    verdict = "[green]fits[/]" if plan.fits else "[red]does not fit[/]"
    terminal.print(f"{verdict} in {show_bytes(memory)}")
    batch = planner.largest_batch(plan.num_classes, memory)
    identities = planner.most_identities(plan.batch, memory)
    terminal.print(f"largest batch of a device   [bold]{batch:,}[/] at this number of identities")
    terminal.print(f"most identities in all      [bold]{identities:,}[/] at this batch")


def _published_table() -> Table:
    table = Table(box=None, padding=(0, 2), header_style="bold", title_justify="left")
    table.title = "Published, on other hardware: most identities"
    for name, justify in (("system", "left"), ("cards", "left"), ("identities", "right")):
        table.add_column(name, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    table.add_column("setting")
    for entry in MOST_IDENTITIES:
        cards = f"{entry.devices} x V100-{entry.card_gib}GB"
        table.add_row(entry.system, cards, f"{entry.identities:,}", entry.setting)
    return table
