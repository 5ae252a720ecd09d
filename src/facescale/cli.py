"""The command line: `facescale train | verify | presets`. The only importer of its library."""

import argparse
import os
import sys
import traceback
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import NoReturn

from jsonargparse import ArgumentParser, Namespace
from rich.console import Console
from rich.table import Table

from facescale import backbones
from facescale.allocator import keep_freed_memory
from facescale.config import PRESETS, Config, preset_path
from facescale.distributed import agree, processes, world_group
from facescale.evaluation.embedding import verify_pairs
from facescale.evaluation.plots import plot_roc
from facescale.evaluation.verification import Verification
from facescale.training import Summary, load_backbone, load_weights_, train
from facescale.training.state import open_pairs

MISTAKES = (ValueError, OSError, ArithmeticError, ImportError)
"""Errors that speak of what the user gave, when our own code raised them."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command. A mistake of the user is one line on stderr and exit status 2."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    keep_freed_memory()
    try:
        chosen = _parse(given)
        run = {"train": _train, "verify": _verify, "presets": _presets}[chosen.subcommand]
        run(chosen[chosen.subcommand])
    except (argparse.ArgumentError, *MISTAKES) as error:
        if not isinstance(error, argparse.ArgumentError) and not _is_ours(error):
            raise
        _refuse(" ".join(str(error).split()))
    except KeyboardInterrupt:
        _refuse("interrupted")


def _is_ours(error: BaseException) -> bool:
    """Whether this package raised the error itself: then its text is written for the user."""
    last = traceback.extract_tb(error.__traceback__)[-1].filename
    return Path(last).is_relative_to(Path(__file__).parent)


def _refuse(message: str) -> NoReturn:
    rank = os.environ.get("RANK", "0")
    print("facescale:" if rank == "0" else f"facescale (rank {rank}):", message, file=sys.stderr)
    sys.exit(2)


def _parse(given: list[str]) -> Namespace:
    """The command's options; for `train` the preset's YAML first, so that options override it."""
    parser = _parser()
    chosen = parser.parse_args(given)
    if chosen.subcommand == "train":
        layers = ["train", "--config", str(preset_path(chosen.train.preset)), *given[1:]]
        chosen = parser.parse_args(layers)
    instantiated: Namespace = parser.instantiate(chosen)
    return instantiated


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="facescale",
        description="Train face recognition over millions of identities.",
        exit_on_error=False,
        allow_abbrev=False,
    )
    commands = parser.add_subcommands()

    training = ArgumentParser(exit_on_error=False, allow_abbrev=False)
    training.add_argument(
        "preset", help="a preset (see `facescale presets`) or a run's config.yaml"
    )
    training.add_argument("--config", action="config", help="one more YAML file of options")
    training.add_argument(
        "--output", type=str, help="folder of the run; runs/PRESET when not given"
    )
    training.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    training.add_class_arguments(Config)
    commands.add_subcommand("train", training, help="train a backbone and its class centres")

    verifying = ArgumentParser(exit_on_error=False, allow_abbrev=False)
    verifying.add_argument("model", help="run folder, model.safetensors, or weights of --backbone")
    verifying.add_argument("--pairs", nargs="+", required=True, help=".bin files, or att")
    verifying.add_argument("--backbone", choices=backbones.NAMES, help="network of a model.pt")
    verifying.add_argument("--family", choices=["mxnet", "arcface_torch"], help="its constants")
    verifying.add_argument("--plot", type=str, help="draw the ROC curves to this PNG")
    verifying.add_argument("--batch_size", type=int, default=64)
    verifying.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    commands.add_subcommand("verify", verifying, help="verify a trained backbone on pairs")

    listing = ArgumentParser(exit_on_error=False)
    commands.add_subcommand("presets", listing, help="list the presets")
    return parser


def _train(chosen: Namespace) -> None:
    config = Config(**{field.name: chosen[field.name] for field in fields(Config)})
    with processes(config.device):
        output = Path(agree(str(_output_folder(chosen))))
        summary = train(config, output, resume=chosen.resume)
        if world_group().rank == 0:
            _show_summary(summary, chosen.preset)


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


def _show_summary(summary: Summary, preset: str) -> None:
    """The last screen: what was reached, where it lies, what to try next."""
    terminal = Console(highlight=False)
    terminal.rule("[bold]done")
    minutes, seconds = divmod(round(summary.seconds), 60)
    terminal.print(
        f"{summary.images:,} images in {minutes} min {seconds} s, {summary.steps:,} steps, "
        f"last loss {summary.loss:.3f}"
    )
    if summary.verifications:
        terminal.print(_verification_table(summary.verifications))
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


def _verification_table(answers: dict[str, Verification]) -> Table:
    table = Table(box=None, padding=(0, 2), header_style="bold")
    table.add_column("pairs")
    for title in ("accuracy", "TAR at FAR 0.001", "AUC", "EER", "threshold (cosine)"):
        table.add_column(title, justify="right")
    for name, answer in answers.items():
        table.add_row(
            name,
            f"[bold]{100 * answer.accuracy:.2f} %[/] +- {100 * answer.accuracy_std:.2f}",
            f"{100 * answer.tar:.2f} %",
            f"{answer.roc.auc:.4f}",
            f"{100 * answer.roc.eer:.2f} %",
            f"{answer.threshold_cosine:.3f}",
        )
    return table


def _verify(chosen: Namespace) -> None:
    with processes(chosen.device) as device:
        backbone = _open_model(chosen).to(device)
        world = world_group()
        answers = {}
        for source in chosen.pairs:
            pairs = open_pairs(source)
            answers[pairs.name] = verify_pairs(
                backbone,
                pairs,
                chosen.batch_size,
                device,
                world.rank,
                world.size,
                world.gather_rows,
            )
        if world.rank == 0:
            Console(highlight=False).print(_verification_table(answers))
            if chosen.plot is not None:
                plot_roc(chosen.plot, answers)


def _open_model(chosen: Namespace) -> backbones.Backbone:
    """A model of our own, which says what it is, or the weights of a named network."""
    path = Path(chosen.model)
    if chosen.backbone is None:
        return load_backbone(path / "model.safetensors" if path.is_dir() else path)
    backbone = backbones.build(chosen.backbone, family=chosen.family)
    load_weights_(backbone, path)
    return backbone.eval()


def _presets(_: Namespace) -> None:
    """Name and first comment line of each preset."""
    table = Table.grid(padding=(0, 3))
    for path in sorted(PRESETS.glob("*.yaml")):
        text = path.read_text()
        table.add_row(f"[bold]{path.stem}[/]", text.splitlines()[0].lstrip("# "))
    Console(highlight=False).print(table)
