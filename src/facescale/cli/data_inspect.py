"""`facescale data inspect`: what a data set has."""

import argparse
from pathlib import Path
from typing import Any

from facescale.cli.parser import Parser, check_counts
from facescale.cli.progress import show_progress
from facescale.cli.terminal import escape, say, show, show_json, table

USAGE = "facescale data inspect SET [options]"
ABOUT = """
Every record is read, and no image decoded: `facescale data check` does that."""
HISTOGRAM, SHEET = "images_per_identity.png", "faces.png"
WIDTH = 50
"""Characters of the longest bar."""


def add_options(parser: Parser) -> None:
    """What the command understands."""
    add = parser.add_argument
    add("source", metavar="SET", help="a data set, as --data.path takes it")
    add("--output", metavar="DIR", help=f"draw {HISTOGRAM} and {SHEET} into this folder")
    add("--seed", type=int, default=0, metavar="N", help=f"of the faces in {SHEET} [0]")
    add("--threads", type=int, metavar="N", help="that read [all cores]")
    add("--json", action="store_true", help="for programs")


def run(chosen: argparse.Namespace) -> None:
    """Read the set, draw, and print what there is."""
    check_counts(chosen, "threads")
    if chosen.seed < 0:
        raise ValueError(f"--seed must be at least 0, got {chosen.seed}")
    if chosen.output is not None:
        Path(chosen.output).mkdir(parents=True, exist_ok=True)
    from facescale.datasets.inspect import inspect

    found = inspect(chosen.source, chosen.threads, show_progress)
    told = {"source": chosen.source, **found.as_values()}
    if chosen.output is not None:
        from facescale.datasets.pictures import draw_contact_sheet, plot_images_per_identity

        plot_images_per_identity(Path(chosen.output, HISTOGRAM), found)
        draw_contact_sheet(Path(chosen.output, SHEET), found, chosen.seed)
        told["pictures"] = [str(Path(chosen.output, name)) for name in (HISTOGRAM, SHEET)]
    if chosen.json:
        show_json(told)
    else:
        _show(told, str(found.found))


def _show(told: dict[str, Any], summary: str) -> None:
    say(f"{escape(told['source'])}: {escape(summary)}")
    say(f"  format       {escape(told['kind'])}")
    for name, fact in told["facts"].items():
        say(f"  {name:<12} {escape(fact)}")
    say(f"  image files  {told['bytes']:,} bytes")
    say(f"  labels       {told['lowest_label']} to {told['highest_label']}")
    if told["names"]:
        say(f"  names        {escape(', '.join(told['names']))}, ...")
    sizes = [f"{w} x {h}" if w else "unknown" for w, h, _ in told["sizes"]]
    counts = [count for _, _, count in told["sizes"]]
    texts = [f"{size} ({count:,})" for size, count in zip(sizes, counts, strict=True)]
    more = told["num_sizes"] - 5
    say(f"  sizes        {', '.join(texts[:5])}{f' and {more:,} more' if more > 0 else ''}")
    if told["classes_without_images"]:
        say(f"  without      {told['classes_without_images']:,} classes have no images")
    for key, what in (("unreadable", "records"), ("labels_out_of_range", "labels")):
        if told[key]:
            say(f"  {what:<12} {told[key]:,} {key.replace('_', ' ')}; see `facescale data check`")
    _show_histogram(told["images_per_identity"])
    for picture in told.get("pictures", []):
        say(escape(picture))


def _show_histogram(told: dict[str, Any]) -> None:
    """A bar for each bin."""
    bars = table("images", "identities", "", left=0)
    bars.columns[2].justify = "left"
    most = max(count for _, _, count in told["bins"])
    for low, high, count in told["bins"]:
        bar = "#" * -(-WIDTH * count // most)
        bars.add_row(f"{low:,}" if low == high else f"{low:,} to {high:,}", f"{count:,}", bar)
    say(
        f"images of an identity: {told['least']:,} to {told['most']:,}, "
        f"median {told['median']:g}, mean {told['mean']:.1f}"
    )
    show(bars)
