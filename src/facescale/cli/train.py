"""`facescale train`: a preset, options over it, a run folder, a last screen."""

import argparse
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from facescale.cli.options import add_config_options, read_config
from facescale.cli.parser import Parser
from facescale.cli.tables import show_verifications
from facescale.cli.terminal import escape, say, show, table

if TYPE_CHECKING:
    from facescale.training import Summary

USAGE = "facescale train PRESET [options]"
ABOUT = """
  PRESET                  a name of `facescale presets`, or a YAML file
  --data.path FOLDER      with train.rec, or with a folder of images a person
  --backbone.name NAME    r18, r50, r100, mbf, ...
  --head.sample_rate X    fraction of the classes in each step (Partial FC)
  --train.batch_size N    images of a rank in a step
  --train.steps N         length of the run; or --train.epochs X
  --train.precision P     float32, bf16, fp16, ...
  --evaluation.sets S S   lfw, cfp_fp, ... beside the data, or .bin files
  --output FOLDER         of the run; runs/PRESET when not given
  --resume                go on from the last checkpoint of --output

With several GPUs: torchrun --nproc_per_node=8 -m facescale train PRESET ..."""


def add_options(parser: Parser) -> None:
    """What the command understands: every field of `Config`, by its dotted name."""
    parser.add_argument("--output", metavar="FOLDER", help="of the run; runs/PRESET when not given")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    add_config_options(parser)


def run(chosen: argparse.Namespace) -> None:
    """Train, and show the results."""
    config = read_config(chosen)
    from facescale.distributed import agree, processes, world_group
    from facescale.training import train

    with processes(config.device, config.timeout_s):
        output = Path(agree(str(_output_folder(chosen))))
        summary = train(config, output, resume=chosen.resume)
        if summary.signal:
            sys.exit(128 + summary.signal)  # as a shell says it
        if world_group().rank == 0:
            _show_summary(summary)


def _output_folder(chosen: argparse.Namespace) -> Path:
    """The folder of the run. A folder that holds a run is never written to unless it resumes."""
    preset = Path(chosen.preset)
    left = (preset.parent / file for file in ("metrics.jsonl", "training.log", "checkpoints"))
    of_a_run = preset.name == "config.yaml" and any(path.exists() for path in left)
    name = preset.absolute().parent.name if of_a_run else preset.stem
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


_FILES = {
    "model.safetensors": "the backbone",
    "training.png": "loss, accuracy and learning rate",
    "roc.png": "ROC curve",
    "metrics.jsonl": "every figure, a line each",
    "config.yaml": "all options of the run",
    "checkpoints/": "to go on from",
}


def _show_summary(summary: "Summary") -> None:
    """The last screen: what was reached, where it lies, what to try next."""
    if summary.steps:
        minutes, seconds = divmod(round(summary.seconds), 60)
        say(
            f"[bold]done[/]: {summary.images:,} images in {minutes} min {seconds} s, "
            f"{summary.steps:,} steps, last loss {summary.loss:.3f}; "
            f"{summary.wait_s / summary.seconds:.1%} of the time waited for images"
        )
    else:
        say("[bold]done[/]: the run had ended before, and no step was trained")
    if summary.unreadable:
        say(f"unreadable images passed over: {summary.unreadable:,}")
    if summary.verifications:
        show_verifications(summary.verifications)
    if summary.best is not None and summary.best.accuracy is not None:
        say(
            f"best on {escape(summary.best.pairs)}: {100 * summary.best.accuracy:.2f} % at step "
            f"{summary.best.step}, kept; choose it by --checkpoint best"
        )
    files = table("file", "", left=2)
    for name, meaning in _FILES.items():
        if (summary.output / name).exists():
            files.add_row(f"[bold]{escape(str(summary.output / name))}[/]", meaning)
    show(files)
    run = escape(shlex.quote(str(summary.output)))
    config = escape(shlex.quote(str(summary.output / "config.yaml")))
    say("\nNext:")
    say(f"  facescale verify {run} PAIRS.bin")
    say(f"  facescale train {config} --head.sample_rate 0.1")
    say("  facescale train emore_r100 --data.path FOLDER_WITH_TRAIN_REC")
