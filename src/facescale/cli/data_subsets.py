"""What the commands share that write a part of data sets, or several, as a new one."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from facescale.cli.parser import Parser
from facescale.cli.progress import show_progress

if TYPE_CHECKING:
    from facescale.datasets.subset import Subset


def add_subset_options(parser: Parser) -> None:
    """Threads, and how the answer is printed."""
    add = parser.add_argument
    add("--threads", type=int, metavar="N", help="that read images [all cores]")
    add("--json", action="store_true", help="for programs")


def check_subset_options(chosen: argparse.Namespace) -> None:
    """Find mistakes before torch is imported; ValueError for a number that makes no sense."""
    least = {"threads": 1, "seed": 0, "images": 1, "people": 1, "min_images": 1}
    for name, number in least.items():
        given = getattr(chosen, name, None)
        if isinstance(given, int) and given < number:
            raise ValueError(f"--{name.replace('_', '-')} must be at least {number}, got {given}")


def write(subset: "Subset", out: str, chosen: argparse.Namespace) -> dict[str, Any]:
    """Write a set with a progress bar; what it is, for the answer."""
    from facescale.datasets.subset import write_subset
    from facescale.datasets.walk import default_threads

    write_subset(subset, Path(out), chosen.threads or default_threads(), show_progress)
    return {
        "folder": out,
        "images": len(subset),
        "classes": subset.num_classes,
        "classes_without_images": subset.found().num_empty,
        "names": subset.class_names is not None,
        "renumbered": subset.old_labels is not None,
    }


def sentence(made: dict[str, Any]) -> str:
    """`OUT: 1,200 images of 30 people, 2 of them without images; names.txt, classes.txt`."""
    from facescale.cli.terminal import escape

    count = made["classes_without_images"]
    empty = f", {count:,} of them without images" if count else ""
    files = [
        name for name, key in (("names.txt", "names"), ("classes.txt", "renumbered")) if made[key]
    ]
    return (
        f"{escape(made['folder'])}: {made['images']:,} images of {made['classes']:,} people"
        f"{empty}{'; ' if files else ''}{', '.join(files)}"
    )
