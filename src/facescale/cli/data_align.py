"""`facescale data align`: aligned faces out of photographs."""

import argparse
import os
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

from facescale.cli.detection import (
    add_detection_options,
    check_detection_options,
    open_chosen_detector,
)
from facescale.cli.parser import Parser, check_counts
from facescale.cli.progress import show_progress
from facescale.cli.terminal import escape, say, show_json

USAGE = "facescale data align PHOTOS OUT [options]"
ABOUT = """
OUT gets the folders of PHOTOS with a face in place of each photograph, and report.csv with a row
for each: its five points, or why there is no face. A second run continues the first. Under torchrun
each rank takes a part."""


def add_options(parser: Parser) -> None:
    """What the command understands."""
    add = parser.add_argument
    add("photos", metavar="PHOTOS", help="a folder of photographs, in folders of any depth")
    add("output", metavar="OUT", help="the folder to write")
    add_detection_options(parser)
    add("--format", choices=["jpg", "png"], default="jpg", help="of the faces [jpg]")
    add("--size", type=int, default=112, metavar="N", help="width and height of a face [112]")
    add("--threads", type=int, metavar="N", help="each holds one photograph [the cores]")
    add("--json", action="store_true", help="print the summary as JSON")


def run(chosen: argparse.Namespace) -> None:
    """Align this process's part; the last process to end says how all went."""
    check_detection_options(chosen)
    check_counts(chosen, "size", "threads")
    photos, output = _folders(chosen)
    rank, size = (int(os.environ.get(name, default)) for name, default in _PROCESSES)
    from facescale.datasets.align import Aligner, align_photographs
    from facescale.datasets.alignreport import Journal, check_options
    from facescale.datasets.walk import default_threads

    detector = open_chosen_detector(chosen)
    _check_photographs(photos, chosen.format)
    output.mkdir(parents=True, exist_ok=True)
    options = _options(chosen)
    check_options(output, options)
    aligner = Aligner(detector, chosen.face, chosen.format, chosen.size, chosen.longest)
    journal, threads = Journal(output, rank, size), chosen.threads or default_threads()
    watch = partial(show_progress, what="photographs", shown=rank == 0)
    align_photographs(photos, output, aligner, journal, rank, size, threads, watch)
    summary = journal.end(options)
    if summary is not None and chosen.json:
        show_json(summary)
    elif summary is not None:
        _show(output, summary)


_PROCESSES = (("RANK", "0"), ("WORLD_SIZE", "1"))


def _folders(chosen: argparse.Namespace) -> tuple[Path, Path]:
    photos, output = Path(chosen.photos), Path(chosen.output)
    if not photos.is_dir():
        raise NotADirectoryError(f"{photos} is not a folder; give a folder of photographs")
    if output.exists() and not output.is_dir():
        raise NotADirectoryError(f"{output} is a file; give a folder for the faces")
    if output.resolve().is_relative_to(photos.resolve()):
        raise ValueError(f"{output} lies in {photos}; give a folder outside of the photographs")
    return photos, output


def _check_photographs(photos: Path, format: str) -> None:
    """Raise ValueError where there are none, as in an empty folder or one of other files."""
    from facescale.data.images import IMAGE_SUFFIXES
    from facescale.datasets.photographs import walk

    if next(walk(photos, f".{format}"), None) is None:
        raise ValueError(
            f"{photos} has no photographs ({' '.join(IMAGE_SUFFIXES)}), nor has a folder in it; "
            "give the folder of the photographs, or convert those of other formats"
        )


def _options(chosen: argparse.Namespace) -> dict[str, Any]:
    """All that the faces depend on."""
    from facescale.detection.opening import VARIABLE

    model = Path(chosen.detector or os.environ[VARIABLE]).read_bytes()
    names = ("face", "format", "size", "longest", "min_score")
    return {
        "photos": str(Path(chosen.photos).resolve()),
        "detector": sha256(model).hexdigest()[:16],
        **{name: getattr(chosen, name) for name in names},
    }


def _show(output: Path, summary: dict[str, Any]) -> None:
    several = f", {summary['chosen of several']:,} of them from several faces"
    say(
        f"{summary['aligned']:,} of {summary['photographs']:,} photographs aligned"
        f"{several if summary['chosen of several'] else ''}"
    )
    for result in ("no face", "several faces", "unreadable"):
        if summary[result]:
            say(f"{summary[result]:,} {result}")
    say(f"{escape(str(output / 'report.csv'))} has a row for each")
