"""`facescale data check`: every record of a data set decoded, and what is wrong said."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from facescale.cli.parser import Parser, check_counts
from facescale.cli.progress import show_progress
from facescale.cli.terminal import escape, file_to_write, say, show, show_json, table

if TYPE_CHECKING:
    from facescale.datasets.check import Report
    from facescale.datasets.examine import Flaw

USAGE = "facescale data check SET [options]"
ABOUT = """
Exit status 1 if anything is wrong. Kinds of flaws: unreadable truncated magic zeroed label broken
cut grey size depth duplicate conflict."""
SHOWN = 3
"""Records of each kind that the text shows."""


def add_options(parser: Parser) -> None:
    """What the command understands."""
    add = parser.add_argument
    add("source", metavar="SET", help="a data set, as --data.path takes it")
    add("--size", type=int, default=112, metavar="N", help="width and height of an image [112]")
    add("--allow", nargs="+", default=[], metavar="KIND", help="flaws that are no error here")
    add(
        "--skip-list",
        "--skip_list",
        metavar="FILE",
        help="write the bad records to this file, for data.skip",
    )
    add("--repair", metavar="OUT", help="write the good records to this folder, as RecordIO")
    add("--renumber", action="store_true", help="with --repair: close gaps between the labels")
    add("--threads", type=int, metavar="N", help="that decode [all cores]")
    add("--report", metavar="FILE", help="write the report to this file, as JSON")
    add("--json", action="store_true", help="print the report as JSON")


def run(chosen: argparse.Namespace) -> None:
    """Check, write what was asked for, and say what is wrong."""
    check_counts(chosen, "size", "threads")
    if chosen.renumber and chosen.repair is None:
        raise ValueError("--renumber is for --repair; give --repair OUT, or leave it out")
    skip_list, saved = (
        None if name is None else file_to_write(name) for name in (chosen.skip_list, chosen.report)
    )
    from facescale.data.skip import require_replaceable
    from facescale.datasets.check import check, good_records
    from facescale.datasets.subset import check_is_free, write_subset
    from facescale.datasets.walk import default_threads

    if skip_list is not None:
        require_replaceable(skip_list)
    if chosen.repair is not None:
        check_is_free(Path(chosen.repair))
    threads = chosen.threads or default_threads()
    report = check(
        chosen.source,
        size=(chosen.size, chosen.size),
        allowed=_flaws(chosen.allow),
        num_threads=threads,
        watch=show_progress,
    )
    told = {"source": chosen.source, **report.as_values(shown=1000)}
    if skip_list is not None:
        told["skip_list"] = _write_skip_list(report, skip_list)
    if chosen.repair is not None:
        subset = good_records(report, chosen.renumber)
        write_subset(subset, Path(chosen.repair), threads, show_progress)
        told["repaired"] = {
            "folder": chosen.repair,
            "images": len(subset),
            "classes": subset.num_classes,
            "classes_without_images": subset.found().num_empty,
            "renumbered": chosen.renumber,
        }
    if saved is not None:
        _save(saved, told)
    if chosen.json:
        show_json(told)
    else:
        _show(told)
    sys.stdout.flush()
    if not report.is_clean:
        sys.exit(1)


def _flaws(kinds: list[str]) -> "Flaw":
    from facescale.cli.parser import choose
    from facescale.datasets.examine import Flaw

    known = {flaw.name.lower(): flaw for flaw in Flaw if flaw.name is not None}
    chosen = Flaw(0)
    for kind in kinds:
        chosen |= known[choose(kind, known, "kind of flaw")]
    return chosen


def _write_skip_list(report: "Report", path: Path) -> dict[str, Any]:
    from facescale.data.skip import write_skip_list
    from facescale.datasets.check import found_by, skip_lines

    write_skip_list(path, found_by(report), skip_lines(report))
    return {"file": str(path), "records": len(report.bad)}


def _save(path: Path, told: dict[str, Any]) -> None:
    import json

    from facescale.files import write_whole

    write_whole(path, [json.dumps(told, indent=1).encode()])


def _show(told: dict[str, Any]) -> None:
    """The report as text."""
    from facescale.datasets.examine import MEANINGS, Flaw

    say(
        f"{escape(told['source'])}: {told['images']:,} images of {told['classes']:,} classes, "
        f"{told['bytes'] / 1e6:,.1f} MB, in {told['seconds']:,.1f} s "
        f"({told['images_per_s']:,.0f} images/s)"
    )
    for line in told["files"]:
        say(f"  {escape(line)}")
    if told["flaws"]:
        shown = table("", "records", "kind", left=0)
        shown.columns[0].justify = shown.columns[2].justify = "left"
        for name, one in told["flaws"].items():
            allowed = " (allowed)" if one["allowed"] else ""
            shown.add_row(name, f"{one['count']:,}", f"{MEANINGS[Flaw[name.upper()]]}{allowed}")
        show(shown)
    for name, one in told["flaws"].items():
        for record in one["records"][:SHOWN]:
            say(f"  {name}: {escape(record['where'])}: {escape(record['reason'])}")
        if one["count"] > SHOWN:
            say(f"  {name}: {one['count'] - SHOWN:,} more; --report FILE has up to 1,000")
    bad = told["bad"]
    if bad or told["files"]:
        say(f"[bold]{bad:,} of {told['images']:,} records are bad[/]")
        if bad and not (told.get("skip_list") or told.get("repaired")):
            say("  --repair OUT writes the others, --skip-list FILE lists these for data.skip")
    else:
        say("nothing is wrong")
    if listed := told.get("skip_list"):
        say(f"{escape(listed['file'])}: {listed['records']:,} records to leave out, for data.skip")
    if made := told.get("repaired"):
        labels = "renumbered without gaps" if made["renumbered"] else "labels as before"
        count = made["classes_without_images"]
        empty = f", {count:,} without images" if count else ""
        say(
            f"{escape(made['folder'])}: {made['images']:,} images of {made['classes']:,} "
            f"classes{empty}; {labels}"
        )
