"""`facescale data split`: hold out people, or images of each, as a second set."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from facescale.cli.data_subsets import (
    add_subset_options,
    check_subset_options,
    sentence,
    write,
)
from facescale.cli.parser import Parser
from facescale.cli.terminal import say, show_json

if TYPE_CHECKING:
    from facescale.data.dataset import Dataset
    from facescale.datasets.subset import Labels

USAGE = "facescale data split SET OUT_A OUT_B [options]"
ABOUT = """
OUT_B gets what is held out, OUT_A the rest; both are RecordIO, numbered without gaps. classes.txt
has the label in SET of each class, names.txt the names where SET has some."""


def add_options(parser: Parser) -> None:
    """What the command understands."""
    add = parser.add_argument
    add("source", metavar="SET", help="a data set, as --data.path takes it")
    add("rest", metavar="OUT_A", help="a new folder for what is left")
    add("held_out", metavar="OUT_B", help="a new folder for what is held out")
    who = parser.add_mutually_exclusive_group()
    who.add_argument("--people", type=int, metavar="N", help="hold out so many random people")
    who.add_argument("--fraction", type=float, metavar="X", help="or this fraction of the people")
    who.add_argument("--list", metavar="FILE", help="or those that a file names, one a line")
    add("--images", type=int, metavar="N", help="hold out so many images of every other person")
    add("--seed", type=int, default=0, metavar="N", help="of who and what is held out [0]")
    add_subset_options(parser)


def run(chosen: argparse.Namespace) -> None:
    """Draw, and write both sets."""
    check_subset_options(chosen)
    if (chosen.people, chosen.fraction, chosen.list, chosen.images) == (None,) * 4:
        raise ValueError("say what is held out: --people, --fraction or --list, or --images")
    if chosen.fraction is not None and not 0 < chosen.fraction < 1:
        raise ValueError(f"--fraction must be in (0, 1), got {chosen.fraction}")
    if Path(chosen.rest) == Path(chosen.held_out):
        raise ValueError(f"{chosen.rest} cannot hold both sets; give two folders")
    from facescale.data.dataset import open_dataset
    from facescale.datasets.output import JOURNAL
    from facescale.datasets.split import Holdout, split
    from facescale.datasets.subset import check_is_free, readable_labels

    if not Path(chosen.rest, JOURNAL).exists():  # else the command may have been killed behind it
        check_is_free(Path(chosen.rest))
    check_is_free(Path(chosen.held_out))
    dataset = open_dataset(chosen.source)
    labels = readable_labels(dataset, chosen.source)
    holdout = Holdout(_people(chosen, dataset, labels), chosen.images or 0, chosen.seed)
    parts = split(dataset, labels, holdout)
    made = [
        write(part, out, chosen)
        for part, out in zip(parts, (chosen.rest, chosen.held_out), strict=True)
    ]
    if chosen.json:
        show_json({"people_held_out": len(holdout.people), "sets": made})
        return
    for one in made:
        say(sentence(one))


def _people(chosen: argparse.Namespace, dataset: "Dataset", labels: "Labels") -> tuple[int, ...]:
    import numpy as np

    from facescale.datasets.names import labels_named, read_names
    from facescale.datasets.split import draw_people

    if chosen.list is not None:
        wanted = read_names(Path(chosen.list))
        return tuple(sorted(set(labels_named(dataset, wanted, chosen.list))))
    if chosen.fraction is not None:
        count = round(chosen.fraction * len(np.unique(labels)))
        return draw_people(labels, count, chosen.seed)
    return () if chosen.people is None else draw_people(labels, chosen.people, chosen.seed)
