"""`facescale data merge`: several data sets as one."""

import argparse
from pathlib import Path

from facescale.cli.data_subsets import (
    add_subset_options,
    check_subset_options,
    sentence,
    write,
)
from facescale.cli.parser import Parser
from facescale.cli.terminal import say, show_json

USAGE = "facescale data merge SET SET [SET ...] OUT [options]"
ABOUT = """
OUT is RecordIO; people of the first set keep their labels, new ones follow. With --people same,
people of one name are one person; with --people apart nobody of one set is anybody of another."""


def add_options(parser: Parser) -> None:
    """What the command understands."""
    add = parser.add_argument
    add(
        "paths", nargs="+", metavar="SET", help="two data sets or more, and at the end a new folder"
    )
    add("--people", choices=["same", "apart"], default="same", help="by name [same]")
    add_subset_options(parser)


def run(chosen: argparse.Namespace) -> None:
    """Open the sets, and write them as one."""
    check_subset_options(chosen)
    *sources, out = chosen.paths
    if len(sources) < 2:
        raise ValueError("give two data sets or more, and the folder that is written at the end")
    from facescale.data.dataset import open_dataset
    from facescale.datasets.merge import merge
    from facescale.datasets.subset import check_is_free

    check_is_free(Path(out))
    datasets = [open_dataset(source) for source in sources]
    merged = merge(datasets, sources, chosen.people)
    made = write(merged, out, chosen)
    in_several = sum(dataset.num_classes for dataset in datasets) - merged.num_classes
    if chosen.json:
        show_json({**made, "in_several_sets": in_several})
        return
    say(sentence(made))
    say(f"{in_several:,} people are in several sets" if chosen.people == "same" else "people apart")
