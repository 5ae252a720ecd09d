"""`facescale train`: a preset, options over it, a run folder, a last screen."""

import sys
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace
from rich.console import Console
from rich.table import Table

from facescale.cli.configured import add_config_options, preset_first, read_config
from facescale.cli.tables import verification_table
from facescale.distributed import agree, processes, world_group
from facescale.training import Summary, train

HELP = "train a backbone and its class centres"


def add_options(parser: ArgumentParser) -> None:
    """What the command understands: every field of `Config`, by its dotted name."""
    parser.add_argument("--output", type=str, help="folder of the run; runs/PRESET when not given")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    add_config_options(parser)


def layered(chosen: Namespace, given: list[str]) -> list[str]:
    """The preset's YAML first, so that options override it."""
    return preset_first(["train"], chosen.preset, given[1:])


def run(chosen: Namespace) -> None:
    """Train, and show what came of it."""
    config = read_config(chosen)
    with processes(config.device, config.timeout_s):
        output = Path(agree(str(_output_folder(chosen))))
        summary = train(config, output, resume=chosen.resume)
        if summary.signal:
            sys.exit(128 + summary.signal)  # as a shell says it
        if world_group().rank == 0:
            _show_summary(summary)


def _output_folder(chosen: Namespace) -> Path:
    """The folder of the run. A folder that holds a run is never written to unless it resumes."""
    preset = Path(chosen.preset)
    of_a_run = preset.name == "config.yaml" and (preset.parent / "metrics.jsonl").exists()
    name = preset.parent.name if of_a_run else preset.stem
    if chosen.output is not None:
        folder = Path(chosen.output)
        if _holds_a_run(folder) and not chosen.resume:
            raise ValueError(
                f"{folder} holds a run already; --resume goes on with it, --output starts another"
            )
        return folder
    if chosen.resume:
        return preset.parent if of_a_run else Path("runs") / name
    taken, number = Path("runs") / name, 1
    while _holds_a_run(taken):
        number += 1
        taken = Path("runs") / f"{name}-{number}"
    return taken


def _holds_a_run(folder: Path) -> bool:
    return (folder / "config.yaml").exists()


def _show_summary(summary: Summary) -> None:
    """The last screen: what was reached, where it lies, what to try next."""
    terminal = Console(highlight=False)
    terminal.rule("[bold]done")
    minutes, seconds = divmod(round(summary.seconds), 60)
    terminal.print(
        f"{summary.images:,} images in {minutes} min {seconds} s, {summary.steps:,} steps, "
        f"last loss {summary.loss:.3f}; {summary.wait_s / summary.seconds:.1%} of the time waited "
        "for images"
    )
    if summary.verifications:
        terminal.print(verification_table(summary.verifications))
    files = Table.grid(padding=(0, 2))
    for name, meaning in (
        ("model.safetensors", "the backbone"),
        ("training.png", "loss, accuracy and learning rate"),
        ("roc.png", "ROC curve"),
        ("metrics.jsonl", "every figure, a line each"),
        ("config.yaml", "the whole run described"),
        ("checkpoints/", "to go on from"),
    ):
        if (summary.output / name).exists():
            files.add_row(f"[bold]{summary.output / name}[/]", meaning)
    terminal.print(files)
    terminal.print("\nNext:")
    run = summary.output
    for command in (
        f"facescale verify {run} --pairs PAIRS.bin",
        f"facescale train {run}/config.yaml --head.sample_rate 0.1",
        "facescale train emore_r100 --data.path FOLDER_WITH_TRAIN_REC",
    ):
        terminal.print(f"  {command}", soft_wrap=True)
