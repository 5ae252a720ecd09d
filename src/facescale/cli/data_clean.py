"""`facescale data clean`: take people and images out of a training set."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from facescale.cli.data_subsets import (
    add_subset_options,
    check_subset_options,
    sentence,
    write,
)
from facescale.cli.networks import add_network_options, check_network_options, open_network
from facescale.cli.parser import Parser
from facescale.cli.progress import show_progress
from facescale.cli.terminal import escape, file_to_write, say, show_json

if TYPE_CHECKING:
    from facescale.datasets.clean import Cleaning

USAGE = "facescale data clean SET [OUT] [options]"
ABOUT = """
Without OUT nothing is written but the report. Test sets of --without are data sets, .bin files
(with --model), or text files with a name a line. Without --model their people are found by name,
with it by the cosine between class centres."""
SHOWN = 5


def add_options(parser: Parser) -> None:
    """What the command understands."""
    add = parser.add_argument
    add("source", metavar="SET", help="a data set, as --data.path takes it")
    add("out", nargs="?", metavar="OUT", help="a new folder for what stays, as RecordIO")
    add("--min-images", type=int, default=1, metavar="N", help="drop people with fewer images [1]")
    add("--without", nargs="+", default=[], metavar="TEST", help="drop the people of these sets")
    add(
        "--similarity", type=float, metavar="X", help="cosine from which on a centre is one of TEST"
    )
    add("--outliers", type=float, metavar="X", help="report images with a cosine below X to theirs")
    add(
        "--near", type=float, metavar="X", help="report images with a cosine of X to an earlier one"
    )
    add(
        "--drop",
        nargs="+",
        default=[],
        choices=["outliers", "near"],
        help="take out what is reported",
    )
    add("--report", metavar="FILE", help="write all that was found to this file, as JSON")
    model = parser.add_argument_group("the model, which compares faces")
    model.add_argument("--model", metavar="MODEL", help="as `facescale embed` takes it")
    add_network_options(_Without(model, "model"))  # type: ignore[arg-type]
    add_subset_options(parser)


class _Without:
    """A group of options that takes those of other commands but one."""

    def __init__(self, group: Any, name: str) -> None:
        self._group, self._name = group, name

    def add_argument(self, *names: str, **options: Any) -> Any:
        """Pass the others on."""
        return None if names == (self._name,) else self._group.add_argument(*names, **options)


def run(chosen: argparse.Namespace) -> None:
    """Compare, report, and write what stays."""
    _check(chosen)
    saved = None if chosen.report is None else file_to_write(chosen.report)
    from facescale.data.dataset import open_dataset
    from facescale.datasets.clean import Cleaning, people_named_in
    from facescale.datasets.subset import check_is_free, readable_labels

    if chosen.out is not None:
        check_is_free(Path(chosen.out))
    dataset = open_dataset(chosen.source)
    found = Cleaning(dataset, readable_labels(dataset, chosen.source))
    found.drop, found.min_images = frozenset(chosen.drop), chosen.min_images
    if chosen.model is not None:
        _compare(found, chosen)
    elif chosen.without:
        found.by_name = people_named_in(dataset, chosen.source, chosen.without)
    told = found.as_values()
    if saved is not None:
        import json

        from facescale.files import write_whole

        write_whole(saved, [json.dumps(told, indent=1).encode()])
    if chosen.out is not None:
        told["written"] = write(found.subset(), chosen.out, chosen)
    if chosen.json:
        show_json(told)
    else:
        _show(told)


def _check(chosen: argparse.Namespace) -> None:
    """Find mistakes before torch is imported."""
    check_subset_options(chosen)
    asked = {name: getattr(chosen, name) for name in ("similarity", "outliers", "near")}
    for name, cosine in asked.items():
        if cosine is not None and not -1 <= cosine <= 1:
            raise ValueError(f"--{name} is a cosine in [-1, 1], got {cosine}")
        if cosine is not None and chosen.model is None:
            raise ValueError(f"--{name} compares faces; give the model that does, --model")
    for name in chosen.drop:
        if asked[name] is None:
            raise ValueError(f"--drop {name} needs a cosine: --{name} X")
    if chosen.model is None:
        if not chosen.without and chosen.min_images == 1:
            raise ValueError("say what is taken out: --min-images, --without, --outliers or --near")
        return
    check_network_options(chosen)
    if bool(chosen.without) != (chosen.similarity is not None):
        raise ValueError("with --model, --without and --similarity need each other; give both")
    if not any(cosine is not None for cosine in asked.values()):
        raise ValueError(
            "--model is for --without and --similarity, --outliers or --near; give one of these"
        )


def _compare(found: "Cleaning", chosen: argparse.Namespace) -> None:
    """Embed the set and the test sets, and fill in what their centres say."""
    from functools import partial

    from facescale.datasets import clean
    from facescale.distributed import processes

    folder = Path() if chosen.out is None else Path(chosen.out).parent
    with processes(chosen.device) as device:
        embed = partial(
            clean.embed,
            open_network(chosen, device),
            batch_size=chosen.batch_size,
            device=device,
            flip=chosen.flip,
            folder=folder,
            watch=show_progress,
        )
        clean.compare_(
            found, embed, chosen.without, chosen.similarity, chosen.outliers, chosen.near
        )


def _show(told: dict[str, Any]) -> None:
    say(
        f"{told['images']:,} images of {told['people']:,} people; {told['images_left']:,} of "
        f"{told['people_left']:,} stay"
    )
    for key, what in (
        ("by_name", "people have the name of one in a test set"),
        ("by_centre", "people are like one in a test set"),
        ("people_with_few_images", "people have too few images"),
        ("outliers", "images are far from the others of their person"),
        ("near", "images are nearly the same as an earlier one of their person"),
    ):
        some = told[key]
        count = some if isinstance(some, int) else len(some)
        if not count:
            continue
        kept = (
            " (reported only)" if key in ("outliers", "near") and key not in told["dropped"] else ""
        )
        say(f"{count:,} {what}{kept}")
        for one in [] if isinstance(some, int) else some[:SHOWN]:
            say(f"  {escape(_line(one))}")
    if made := told.get("written"):
        say(sentence(made))


def _line(one: str | dict[str, Any]) -> str:
    if isinstance(one, str):
        return one
    if "nearest" in one:
        text = f"{one['where']}: {one['cosine']:.3f} to {one['person']}"
        return text if one["nearest"] == one["person"] else f"{text}; nearest is {one['nearest']}"
    return f"{one.get('where') or one['person']}: {one['cosine']:.3f} to {one['like']}"
