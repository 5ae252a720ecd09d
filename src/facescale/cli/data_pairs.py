"""`facescale data pairs`: verification sets in InsightFace's `.bin` format."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from facescale.cli.parser import Parser
from facescale.cli.terminal import escape, file_to_write, say

if TYPE_CHECKING:
    from facescale.data.pairs import PairSet

USAGE = "facescale data pairs SOURCE OUT.bin [options]"
ABOUT = """
SOURCE is a list of pairs (LFW's pairs.txt, or CSV of two paths and 0 or 1), the folder of CFP's
protocol, or a data set to draw pairs from, with other people in each fold. With --extract it is a
.bin file, and OUT a folder for its images and a pairs.csv that makes the same set again."""


def add_options(parser: Parser) -> None:
    """What the command understands."""
    add = parser.add_argument
    add("source", metavar="SOURCE", help="list, protocol, data set or .bin file")
    add("output", metavar="OUT", help="the .bin file, or the folder of --extract")
    add("--images", metavar="DIR", help="where the list's images lie [beside the list]")
    add("--protocol", choices=["FP", "FF"], default="FP", help="of CFP [FP]")
    add("--pairs", type=int, default=6000, metavar="N", help="to draw from a data set [6000]")
    add("--folds", type=int, default=10, metavar="N", help="to draw them for [10]")
    add("--seed", type=int, default=0, metavar="N", help="of what is drawn [0]")
    add("--stretch", action="store_true", help="scale images that are not 112 x 112")
    add("--skip_missing", action="store_true", help="leave out pairs without an image")
    add("--extract", action="store_true", help="write the images of a .bin file")


def run(chosen: argparse.Namespace) -> None:
    """Make a set, or take one apart."""
    if chosen.extract:
        _extract(chosen)
        return
    output = file_to_write(chosen.output)
    if output.suffix != ".bin":
        raise ValueError(f"{output}: give a name that ends in .bin, or --extract")
    from facescale.data.pairs import save_pairs

    pairs = _make(chosen, output.stem)
    save_pairs(output, pairs)
    images, same = len(pairs.distinct()[0]), int(pairs.same.sum())
    say(
        f"{escape(str(output))}: {len(pairs.same):,} pairs, {same:,} of one person, of "
        f"{images:,} images"
    )


def _make(chosen: argparse.Namespace, name: str) -> "PairSet":
    from facescale.datasets import pairs

    source = Path(chosen.source)
    if source.suffix == ".bin":
        raise ValueError(f"{source} is a set already; give --extract for its images")
    if not pairs.is_list(source):
        return pairs.drawn_pairs(
            name, chosen.source, chosen.pairs, chosen.folds, chosen.seed, chosen.stretch
        )
    images = None if chosen.images is None else Path(chosen.images)
    if images is not None and not images.is_dir():
        raise NotADirectoryError(f"{images} is not a folder; give the folder of the images")
    listed = pairs.read_list(source, images, chosen.protocol)
    kept = pairs.without_missing(listed, chosen.skip_missing)
    if len(kept) < len(listed):
        say(f"{len(listed) - len(kept):,} of {len(listed):,} pairs left out: images are missing")
    return pairs.pairs_of_files(name, kept, chosen.stretch)


def _extract(chosen: argparse.Namespace) -> None:
    folder = Path(chosen.output)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} exists and is not an empty folder; give a new one")
    from facescale.data.pairs import load_pairs
    from facescale.datasets.pairs import extract_pairs

    pairs = load_pairs(chosen.source)
    number = extract_pairs(pairs, folder)
    say(f"{number:,} images, and {len(pairs.same):,} pairs in {escape(str(folder / 'pairs.csv'))}")
