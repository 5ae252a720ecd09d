"""What `data pack` and `data convert` have in common: source, order, progress, the last line."""

import argparse
from typing import TYPE_CHECKING, Any

from facescale.cli.parser import Parser
from facescale.cli.progress import show_progress
from facescale.cli.terminal import escape, say
from facescale.cli.values import convert

if TYPE_CHECKING:
    from facescale.data.dataset import Dataset
    from facescale.datasets.convert import Options


def add_source(parser: Parser) -> None:
    """The set that is read, and the folder that is written."""
    add = parser.add_argument
    add("source", metavar="SOURCE", help="a data set, as --data.path takes it; '[A, B]' joins sets")
    add("out", metavar="OUT", help="a new folder")
    add(
        "--people",
        choices=["apart", "by_name"],
        default="apart",
        help="of joined sets: all different, or the same where the name is the same [apart]",
    )


def add_writing(parser: Parser) -> None:
    """Order, threads, and what to do with unusable images."""
    add = parser.add_argument
    add(
        "--order",
        choices=["kept", "shuffled"],
        default="kept",
        help="in which the images lie in the files [kept]",
    )
    add("--seed", type=int, default=0, metavar="N", help="of the order [0]")
    add("--threads", type=int, default=2, metavar="N", help="that read images [2]")
    add(
        "--on-error",
        choices=["stop", "skip"],
        default="stop",
        help="at an unusable image; skip lists it in OUT/skipped.txt [stop]",
    )


def add_labels(parser: Parser) -> None:
    """How RecordIO keeps labels."""
    parser.add_argument(
        "--labels",
        choices=["float32", "exact"],
        default="float32",
        help="of RecordIO; exact allows more than 16,777,216 people [float32]",
    )


def open_source(chosen: argparse.Namespace) -> "Dataset":
    """The set to be read."""
    from facescale.data.dataset import open_dataset

    sources = convert(chosen.source, str | list[str], "SOURCE")
    return open_dataset(sources, people=chosen.people)


def writing_of(chosen: argparse.Namespace) -> dict[str, Any]:
    """The options of `add_writing`, as `Options` has them."""
    return {name: getattr(chosen, name) for name in ("order", "seed", "threads", "on_error")}


def report(dataset: "Dataset", out: str, options: "Options") -> None:
    """Do the work with a progress bar, and say what was found and written."""
    from facescale.data.found import found_in
    from facescale.datasets.convert import SKIPPED, Conversion

    say(escape(f"found {found_in(dataset)}"))
    work = Conversion(dataset, out, options)
    try:
        if 0 < work.remaining < len(dataset):
            say(f"going on after {len(dataset) - work.remaining:,} images")
        for _ in show_progress(work.write(), work.remaining):
            pass
        for _ in show_progress(work.verify(), work.progress.written, "images verified"):
            pass
    finally:
        work.close()
    now = work.progress
    say(f"{escape(str(work.folder))}: {now.written:,} images, verified, digest {now.digest[:16]}")
    if skipped := now.read - now.written:
        listed = escape(str(work.folder / SKIPPED))
        say(f"{skipped:,} unusable images were passed over: see {listed}")
